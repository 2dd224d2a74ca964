package network

import (
	"bytes"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
)

// rules is our nftables table, for IPv4 and IPv6. Its chains are written when
// minked starts; afterwards only elements of sets and maps change, with
// networks and published ports:
//
//	table inet minke_<bridge> {
//	  set bridges     { ifname }            bridges of our networks
//	  set self        { ifname . ifname }   each bridge with itself
//	  set talk        { ifname . ifname }   the same, of networks whose containers may talk to each other
//	  set internal    { ifname }            bridges without a way out
//	  set open        { nfproto . ifname }  nat-unprotected: all may come in
//	  set routed      { nfproto . ifname }  routed: containers may be pinged
//	  set hide4/6     { addr }              subnets that go out with the host's address
//	  map out4/6      { addr -> addr }      subnets that go out with one address of the host
//	  set own4/6      { ifname . addr }     each bridge with its subnet
//	  set direct4/6   { proto . addr . port }               published without NAT
//	  map any4/6      { proto . port -> addr . port }       published on every address
//	  map bound4/6    { proto . addr . port -> addr . port } published on one
//
//	  chain user         the owner's own rules go here; never touched
//	  chain publish      dnat by bound, then by any
//	  chain prerouting   nat; to this host -> publish
//	  chain output       nat; to this host -> publish
//	  chain postrouting  nat; hairpin and outgoing -> masquerade, or snat by out
//	  chain loopback     raw; containers may not reach 127.0.0.0/8 of the host
//	  chain forward      isolation of networks from each other and from outside
//	}
//
// What should be in the sets is known here. A change that the kernel refuses,
// because somebody removed our table or parts of it, has all of it written anew.
//
// A verdict of accept here does not overrule other tables: a host firewall may
// still drop what it does not know.
type rules struct {
	mu      sync.Mutex
	table   *nftables.Table
	conn    *nftables.Conn
	port    uint32 // netlink's name for our socket
	settled bool   // want is complete: published ports, too

	bridges, self, talk, internal, open, routed *nftables.Set
	v4, v6                                      family
	sets                                        []*nftables.Set // all of these

	want map[*nftables.Set]map[string]element
}

// family is what there is once for IPv4 and once for IPv6.
type family struct {
	proto                           byte // NFPROTO_*
	hide, out, own                  *nftables.Set
	direct, any, bound              *nftables.Set
	source, destination, addrLength uint32 // in the header
}

// ipv4Destination is where the address is in the header.
const ipv4Destination = 16

// An element of one of our sets.
type element struct {
	set           *nftables.Set
	key, end, val []byte // end is the last key of a range, val is a map's
}

func openRules(bridge string) (*rules, error) {
	r := &rules{
		table: &nftables.Table{Family: nftables.TableFamilyINet, Name: "minke_" + bridge},
		want:  map[*nftables.Set]map[string]element{},
	}
	r.describeSets()
	var err error
	if r.conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(r.notePort)); err != nil {
		return nil, err
	}
	for _, s := range r.sets {
		r.want[s] = map[string]element{}
	}
	return r, nil
}

// notePort learns by which number the kernel tells our changes from others'.
func (r *rules) notePort(c *netlink.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) {
		if sa, err := unix.Getsockname(int(fd)); err == nil {
			if nl, ok := sa.(*unix.SockaddrNetlink); ok {
				r.port = nl.Pid
			}
		}
	})
}

func (r *rules) close() error { return r.conn.CloseLasting() }

// remove deletes the table unless its owner has rules in it.
func (r *rules) remove() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	own, err := r.conn.GetRules(r.table, &nftables.Chain{Name: "user", Table: r.table})
	if err != nil {
		return nil // it is gone
	}
	if len(own) > 0 {
		r.want = map[*nftables.Set]map[string]element{}
		return r.writeLocked()
	}
	r.conn.DelTable(r.table)
	return r.conn.Flush()
}

func (r *rules) describeSets() {
	set := func(name string, types ...nftables.SetDatatype) *nftables.Set {
		// The byte order only tells nft how to print.
		s := &nftables.Set{Table: r.table, Name: name, KeyType: types[0], KeyByteOrder: binaryutil.NativeEndian}
		if len(types) > 1 {
			s.KeyType, s.Concatenation = nftables.MustConcatSetType(types...), true
		}
		r.sets = append(r.sets, s)
		return s
	}
	ifname, proto, port := nftables.TypeIFName, nftables.TypeInetProto, nftables.TypeInetService
	r.bridges = set("bridges", ifname)
	r.self = set("self", ifname, ifname)
	r.talk = set("talk", ifname, ifname)
	r.internal = set("internal", ifname)
	r.open = set("open", nftables.TypeNFProto, ifname)
	r.routed = set("routed", nftables.TypeNFProto, ifname)
	families := func(suffix string, addr nftables.SetDatatype) (f family) {
		// Of ranges the kernel keeps those of concatenations apart where they touch.
		f.hide, f.out, f.own = set("hide"+suffix, nftables.TypeNFProto, addr), set("out"+suffix, nftables.TypeNFProto, addr), set("own"+suffix, ifname, addr)
		f.hide.Interval, f.out.Interval, f.own.Interval = true, true, true
		f.out.IsMap, f.out.DataType = true, addr
		f.direct = set("direct"+suffix, proto, addr, port)
		f.any, f.bound = set("any"+suffix, proto, port), set("bound"+suffix, proto, addr, port)
		for _, m := range []*nftables.Set{f.any, f.bound} {
			m.IsMap, m.DataType = true, nftables.MustConcatSetType(addr, port)
		}
		return f
	}
	r.v4 = families("4", nftables.TypeIPAddr)
	r.v4.proto, r.v4.source, r.v4.destination, r.v4.addrLength = unix.NFPROTO_IPV4, 12, ipv4Destination, 4
	r.v6 = families("6", nftables.TypeIP6Addr)
	r.v6.proto, r.v6.source, r.v6.destination, r.v6.addrLength = unix.NFPROTO_IPV6, 8, 24, 16
}

// of is the family of an address.
func (r *rules) of(a netip.Addr) *family {
	if a.Is4() {
		return &r.v4
	}
	return &r.v6
}

// start writes the table for these networks. Published ports of an earlier
// process stay until settle.
func (r *rules) start(networks []element) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rememberLocked(networks, nil)
	err := r.writeLocked()
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return errdef.Unavailable.Errorf("this kernel has no nftables with NAT: %w; enable NF_TABLES_INET, NFT_NAT, NFT_MASQ, NFT_CT and NFT_FIB_INET (Linux 5.6 or newer)", err)
	}
	return err
}

// writeLocked makes the table right in one transaction, in place, so that no
// packet finds it half made; only a table that is not of this version is made
// anew first, without its owner's rules.
func (r *rules) writeLocked() error {
	r.queueAll()
	err := r.conn.Flush()
	if err == nil || errors.Is(err, syscall.EPERM) {
		return err
	}
	r.conn.AddTable(r.table) // so that deleting it cannot fail
	r.conn.DelTable(r.table)
	r.queueAll()
	return r.conn.Flush()
}

func (r *rules) queueAll() {
	c := r.conn
	c.AddTable(r.table)
	for _, s := range r.sets {
		c.AddSet(s, nil) // fails for nothing that can be here
	}
	r.queueChains()
	for _, s := range r.sets {
		if !r.settled && (s.IsMap || s == r.v4.direct || s == r.v6.direct) {
			continue // of containers that are to rejoin
		}
		c.FlushSet(s)
		r.queue(c.SetAddElements, slices.Collect(maps.Values(r.want[s])))
	}
}

func (r *rules) queueChains() {
	c := r.conn
	chain := func(name string, t nftables.ChainType, hook *nftables.ChainHook, p *nftables.ChainPriority) *nftables.Chain {
		ch := c.AddChain(&nftables.Chain{Name: name, Table: r.table, Type: t, Hooknum: hook, Priority: p})
		c.FlushChain(ch)
		return ch
	}
	rule := func(ch *nftables.Chain, parts ...[]expr.Any) {
		c.AddRule(&nftables.Rule{Table: r.table, Chain: ch, Exprs: slices.Concat(parts...)})
	}
	user := c.AddChain(&nftables.Chain{Name: "user", Table: r.table})
	publish := chain("publish", "", nil, nil)
	prerouting := chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	output := chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	postrouting := chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	loopback := chain("loopback", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	forward := chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)

	rule(prerouting, toThisHost(), jump(publish))
	// The kernel has no way to send from ::1 to elsewhere and back; this process
	// carries that over.
	rule(output, nfproto(reg(0)), equal(reg(0), []byte{unix.NFPROTO_IPV6}), addressIn(r.v6.destination, "::1/128"), leave())
	rule(output, toThisHost(), jump(publish))
	rule(forward, jump(user))
	rule(forward, ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept())
	rule(forward, iface(expr.MetaKeyIIFNAME, wide(0)), iface(expr.MetaKeyOIFNAME, wide(1)), inSet(r.talk, wide(0)), accept())
	rule(forward, iface(expr.MetaKeyIIFNAME, reg(0)), inSet(r.internal, reg(0)), drop())
	rule(forward, iface(expr.MetaKeyOIFNAME, reg(0)), inSet(r.internal, reg(0)), drop())
	// A published port is open to other networks, too; the rest is not.
	rule(forward, ctStatusDNAT(), accept())
	into := func(parts ...[]expr.Any) []expr.Any {
		return slices.Concat(append([][]expr.Any{iface(expr.MetaKeyOIFNAME, reg(0)), inSet(r.bridges, reg(0))}, parts...)...)
	}
	rule(forward, into(iface(expr.MetaKeyIIFNAME, reg(0)), inSet(r.bridges, reg(0)), drop()))
	rule(forward, nfproto(reg(0)), iface(expr.MetaKeyOIFNAME, reg(1)), inSet(r.open, reg(0)), accept())
	for _, icmp := range []byte{unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6} {
		rule(forward, nfproto(reg(0)), iface(expr.MetaKeyOIFNAME, reg(1)), inSet(r.routed, reg(0)), proto(reg(0)), equal(reg(0), []byte{icmp}), accept())
	}

	for _, f := range []*family{&r.v4, &r.v6} {
		is := slices.Concat(nfproto(reg(0)), equal(reg(0), []byte{f.proto}))
		words := f.addrLength / 4
		source := func(at int) []expr.Any { return payload(reg(at), f.source, f.addrLength) }
		destination := func(at int) []expr.Any { return payload(reg(at), f.destination, f.addrLength) }
		after := func(at int) int { return at + int(words) }

		rule(publish, is, proto(reg(0)), destination(1), port(reg(after(1))), lookUp(f.bound, reg(0)), dnat(f))
		rule(publish, is, proto(reg(0)), port(reg(1)), lookUp(f.any, reg(0)), dnat(f))
		rule(forward, is, into(proto(reg(0)), destination(1), port(reg(after(1))), inSet(f.direct, reg(0)), accept()))

		// A container that reaches itself or a neighbour by the host's address:
		// the answer must take the same way back.
		own := slices.Concat(iface(expr.MetaKeyOIFNAME, reg(0)), source(4))
		rule(postrouting, is, own, inSet(f.own, reg(0)), ctStatusDNAT(), masquerade())
		rule(postrouting, is, own, notInSet(f.own, reg(0)), nfproto(reg(0)), source(1), inSet(f.hide, reg(0)), masquerade())
		rule(postrouting, is, own, notInSet(f.own, reg(0)), nfproto(reg(0)), source(1), lookUp(f.out, reg(0)), snat(f))
	}
	// From this host to a published port by a loopback address: the answer must
	// come back here.
	v4 := slices.Concat(nfproto(reg(0)), equal(reg(0), []byte{unix.NFPROTO_IPV4}))
	rule(postrouting, v4, iface(expr.MetaKeyOIFNAME, reg(0)), inSet(r.bridges, reg(0)), addressIn(r.v4.source, "127.0.0.0/8"), masquerade())
	rule(loopback, v4, iface(expr.MetaKeyIIFNAME, reg(0)), inSet(r.bridges, reg(0)), addressIn(r.v4.destination, "127.0.0.0/8"), drop())
	rule(forward, into(drop()))
}

// elementsOf is what a network needs in our sets.
func (r *rules) elementsOf(n *state) []element {
	name := ifname(n.bridge)
	pair := append(slices.Clone(name), name...)
	out := []element{{set: r.bridges, key: name}, {set: r.self, key: pair}}
	if n.options.icc {
		out = append(out, element{set: r.talk, key: pair})
	}
	if n.Internal || n.options.mode4 == modeIsolated || n.options.mode6 == modeIsolated {
		out = append(out, element{set: r.internal, key: name})
	}
	for _, c := range n.IPAM.Config {
		f, mode := r.of(c.Subnet.Addr()), n.options.mode(c.Subnet.Addr())
		first, last := c.Subnet.Addr().AsSlice(), lastOf(c.Subnet).AsSlice()
		of := append([]byte{f.proto, 0, 0, 0}, name...)
		out = append(out, element{set: f.own, key: append(slices.Clone(name), first...), end: append(slices.Clone(name), last...)})
		if !n.Internal && n.options.masquerade && (mode == modeNAT || mode == modeUnprotected) {
			subnet := element{set: f.hide, key: append([]byte{f.proto, 0, 0, 0}, first...), end: append([]byte{f.proto, 0, 0, 0}, last...)}
			if host := n.options.host(c.Subnet.Addr()); host.IsValid() {
				subnet.set, subnet.val = f.out, host.AsSlice()
			}
			out = append(out, subnet)
		}
		switch mode {
		case modeUnprotected:
			out = append(out, element{set: r.open, key: of})
		case modeRouted:
			out = append(out, element{set: r.routed, key: of})
		}
	}
	return out
}

// elementOf is a published port; ok is false for one that only this process
// carries over.
func (r *rules) elementOf(p *publication) (e element, ok bool) {
	if p.direct {
		e.set = r.of(p.target.Addr()).direct
		e.key = slices.Concat(inetProto(p.port.Proto()), p.target.Addr().AsSlice(), inetService(p.target.Port()))
		return e, true
	}
	if p.key.addr.Is4() != p.target.Addr().Is4() {
		return e, false
	}
	f := r.of(p.key.addr)
	e.val = append(p.target.Addr().AsSlice(), inetService(p.target.Port())...)
	if p.key.addr.IsUnspecified() {
		e.set, e.key = f.any, append(inetProto(p.port.Proto()), inetService(p.key.port)...)
		return e, true
	}
	e.set, e.key = f.bound, slices.Concat(inetProto(p.port.Proto()), p.key.addr.WithZone("").AsSlice(), inetService(p.key.port))
	return e, true
}

func (r *rules) elementsOfPorts(all []*publication) (out []element) {
	for _, p := range all {
		if e, ok := r.elementOf(p); ok {
			out = append(out, e)
		}
	}
	return out
}

// change removes and adds elements in one transaction. Elements that are there
// already, or not, are no error.
func (r *rules) change(remove, add []element) error {
	if len(remove)+len(add) == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	remove = slices.DeleteFunc(slices.Clone(remove), func(e element) bool { _, there := r.want[e.set][string(e.key)]; return !there })
	r.rememberLocked(add, remove)
	r.queue(r.conn.SetDeleteElements, remove)
	r.queue(r.conn.SetAddElements, add)
	if r.conn.Flush() == nil {
		return nil
	}
	return r.writeLocked()
}

func (r *rules) rememberLocked(add, remove []element) {
	for _, e := range remove {
		delete(r.want[e.set], string(e.key))
	}
	for _, e := range add {
		r.want[e.set][string(e.key)] = e
	}
}

// queue has elements of one set in one message.
func (r *rules) queue(do func(*nftables.Set, []nftables.SetElement) error, all []element) {
	for _, s := range r.sets {
		var of []nftables.SetElement
		for _, e := range all {
			if e.set == s {
				of = append(of, nftables.SetElement{Key: e.key, KeyEnd: e.end, Val: e.val})
			}
		}
		if len(of) > 0 {
			do(s, of) // fails for anonymous sets only
		}
	}
}

// settle removes published ports of containers that are no more: what is
// wanted is now complete.
func (r *rules) settle() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settled = true
	for _, s := range r.sets {
		have, err := r.conn.GetSetElements(s)
		if err != nil {
			return r.writeLocked()
		}
		if len(have) != len(r.want[s]) {
			return r.writeLocked()
		}
		for _, e := range have {
			if w, ok := r.want[s][string(e.Key)]; !ok || !bytes.Equal(w.val, e.Val) {
				return r.writeLocked()
			}
		}
	}
	return nil
}

// rewrite writes everything anew, after somebody else changed it.
func (r *rules) rewrite() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.writeLocked()
}
