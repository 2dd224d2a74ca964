package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
)

// rules is our nftables table. Its chains are written once; afterwards only
// elements of sets and maps change, with networks and published ports:
//
//	table ip minke_<bridge> {
//	  set bridges   { type ifname }              bridges of our networks
//	  set same      { type ifname . ifname }     each bridge with itself
//	  set internal  { type ifname }              bridges without a way out
//	  map any       { proto . port -> addr . port }         published on every address
//	  map bound     { proto . addr . port -> addr . port }  published on one
//
//	  chain user         the owner's own rules go here; never touched
//	  chain publish      dnat by bound, then by any
//	  chain prerouting   nat; to this host -> publish
//	  chain output       nat; to this host -> publish
//	  chain postrouting  nat; hairpin and outgoing -> masquerade
//	  chain loopback     raw; containers may not reach 127.0.0.0/8 of the host
//	  chain forward      isolation of networks from each other
//	}
//
// A verdict of accept here does not overrule other tables: a host firewall may
// still drop what it does not know.
type rules struct {
	mu    sync.Mutex
	table *nftables.Table
	conn  *nftables.Conn

	bridges, same, internal, any, bound *nftables.Set
	postrouting                         *nftables.Chain
}

// marker is the table's last chain; it is there if all of this version is.
const marker = "v1"

func openRules(bridge string) (*rules, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, err
	}
	r := &rules{conn: conn, table: &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "minke_" + bridge}}
	r.describeSets()
	r.postrouting = &nftables.Chain{Name: "postrouting", Table: r.table}
	if r.present() {
		return r, nil // kept over a restart, so that published ports go on
	}
	if err := r.write(); err != nil {
		conn.CloseLasting()
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPROTONOSUPPORT) {
			return nil, errdef.Unavailable.Errorf("this kernel has no nftables with NAT: %w; enable NF_TABLES, NFT_NAT, NFT_MASQ and NFT_FIB_IPV4", err)
		}
		return nil, err
	}
	return r, nil
}

func (r *rules) close() error { return r.conn.CloseLasting() }

func (r *rules) remove() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.present() {
		return nil
	}
	r.conn.DelTable(r.table)
	return r.conn.Flush()
}

func (r *rules) present() bool {
	c, err := r.conn.ListChain(r.table, marker)
	return err == nil && c != nil
}

func (r *rules) describeSets() {
	pair := func(types ...nftables.SetDatatype) nftables.SetDatatype { return nftables.MustConcatSetType(types...) }
	set := func(name string, key nftables.SetDatatype, concat bool) *nftables.Set {
		// The byte order only tells nft how to print.
		return &nftables.Set{Table: r.table, Name: name, KeyType: key, Concatenation: concat, KeyByteOrder: binaryutil.NativeEndian}
	}
	r.bridges = set("bridges", nftables.TypeIFName, false)
	r.internal = set("internal", nftables.TypeIFName, false)
	r.same = set("same", pair(nftables.TypeIFName, nftables.TypeIFName), true)
	target := pair(nftables.TypeIPAddr, nftables.TypeInetService)
	r.any = set("any", pair(nftables.TypeInetProto, nftables.TypeInetService), true)
	r.bound = set("bound", pair(nftables.TypeInetProto, nftables.TypeIPAddr, nftables.TypeInetService), true)
	for _, m := range []*nftables.Set{r.any, r.bound} {
		m.IsMap, m.DataType = true, target
	}
}

// write makes the table anew in one transaction.
func (r *rules) write() error {
	c := r.conn
	c.AddTable(r.table) // so that deleting it cannot fail
	c.DelTable(r.table)
	c.AddTable(r.table)
	for _, s := range []*nftables.Set{r.bridges, r.internal, r.same, r.any, r.bound} {
		if err := c.AddSet(s, nil); err != nil {
			return err
		}
	}
	chain := func(name string, t nftables.ChainType, hook *nftables.ChainHook, p *nftables.ChainPriority) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: r.table, Type: t, Hooknum: hook, Priority: p})
	}
	rule := func(ch *nftables.Chain, parts ...[]expr.Any) {
		c.AddRule(&nftables.Rule{Table: r.table, Chain: ch, Exprs: slices.Concat(parts...)})
	}
	user := chain("user", "", nil, nil)
	publish := chain("publish", "", nil, nil)
	prerouting := chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	output := chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	r.postrouting = chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	loopback := chain("loopback", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	forward := chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	chain(marker, "", nil, nil)

	rule(publish, proto(reg0), destination(reg1), port(reg2), lookUp(r.bound, reg0), dnat())
	rule(publish, proto(reg0), port(reg1), lookUp(r.any, reg0), dnat())
	rule(prerouting, toThisHost(), jump(publish))
	rule(output, toThisHost(), jump(publish))

	// From this host to a published port by a loopback address: the answer
	// must come back here.
	rule(r.postrouting, iface(expr.MetaKeyOIFNAME, reg0), inSet(r.bridges, reg0), sourceIn("127.0.0.0/8"), masquerade())

	rule(loopback, iface(expr.MetaKeyIIFNAME, reg0), inSet(r.bridges, reg0), destinationIn("127.0.0.0/8"), drop())

	rule(forward, jump(user))
	rule(forward, ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept())
	rule(forward, iface(expr.MetaKeyIIFNAME, wide(0)), iface(expr.MetaKeyOIFNAME, wide(1)), inSet(r.same, wide(0)), accept())
	rule(forward, iface(expr.MetaKeyIIFNAME, reg0), inSet(r.internal, reg0), drop())
	rule(forward, iface(expr.MetaKeyOIFNAME, reg0), inSet(r.internal, reg0), drop())
	// A published port is open to other networks, too; the rest is not.
	rule(forward, ctStatusDNAT(), accept())
	rule(forward, iface(expr.MetaKeyIIFNAME, reg0), inSet(r.bridges, reg0), iface(expr.MetaKeyOIFNAME, reg0), inSet(r.bridges, reg0), drop())
	return c.Flush()
}

// addNetwork lets a network's traffic out, masqueraded, unless it is internal.
// It may be called again.
func (r *rules) addNetwork(n *state) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, name := r.conn, ifname(n.bridge)
	for _, s := range []struct {
		set *nftables.Set
		key []byte
	}{{r.bridges, name}, {r.same, append(slices.Clone(name), name...)}} {
		if err := c.SetAddElements(s.set, []nftables.SetElement{{Key: s.key}}); err != nil {
			return err
		}
	}
	if n.Internal {
		if err := c.SetAddElements(r.internal, []nftables.SetElement{{Key: name}}); err != nil {
			return err
		}
	}
	have, err := r.rulesOf(n.ID)
	if err != nil {
		return err
	}
	if len(have) == 0 {
		r.masqueradeLocked(n)
	}
	return c.Flush()
}

func (r *rules) masqueradeLocked(n *state) {
	for _, conf := range n.IPAM.Config {
		if !conf.Subnet.Addr().Is4() {
			continue
		}
		add := func(parts ...[]expr.Any) {
			r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: r.postrouting, Exprs: slices.Concat(parts...), UserData: []byte(n.ID)})
		}
		subnet := conf.Subnet.String()
		// A container that reaches itself or a neighbour by the host's
		// address: the answer must take the same way back.
		add(sourceIn(subnet), iface(expr.MetaKeyOIFNAME, reg0), equal(reg0, ifname(n.bridge)), ctStatusDNAT(), masquerade())
		if !n.Internal && n.Options["com.docker.network.bridge.enable_ip_masquerade"] != "false" {
			add(sourceIn(subnet), iface(expr.MetaKeyOIFNAME, reg0), differs(reg0, ifname(n.bridge)), masquerade())
		}
	}
}

// rulesOf finds the rules that were made for a network.
func (r *rules) rulesOf(id string) (out []*nftables.Rule, err error) {
	all, err := r.conn.GetRules(r.table, r.postrouting)
	if err != nil {
		return nil, err
	}
	for _, rule := range all {
		if string(rule.UserData) == id {
			out = append(out, rule)
		}
	}
	return out, nil
}

func (r *rules) removeNetwork(n *state) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	have, err := r.rulesOf(n.ID)
	if err != nil {
		return err
	}
	if len(have) == 0 {
		return nil
	}
	for _, rule := range have {
		if err := r.conn.DelRule(rule); err != nil {
			return err
		}
	}
	name := ifname(n.bridge)
	err = r.conn.SetDeleteElements(r.bridges, []nftables.SetElement{{Key: name}})
	if err == nil {
		err = r.conn.SetDeleteElements(r.same, []nftables.SetElement{{Key: append(slices.Clone(name), name...)}})
	}
	if err == nil && n.Internal {
		err = r.conn.SetDeleteElements(r.internal, []nftables.SetElement{{Key: name}})
	}
	return errors.Join(err, r.conn.Flush())
}

// element is a publication as an element of one of the two maps.
func (r *rules) element(p *publication) (*nftables.Set, nftables.SetElement) {
	to := append(slice4(p.target.Addr()), inetService(p.target.Port())...)
	key := inetProto(p.port.Proto())
	if p.key.addr.IsUnspecified() {
		return r.any, nftables.SetElement{Key: append(key, inetService(p.key.port)...), Val: to}
	}
	key = append(key, slice4(p.key.addr)...)
	return r.bound, nftables.SetElement{Key: append(key, inetService(p.key.port)...), Val: to}
}

func (r *rules) publish(all []*publication) error   { return r.change(all, r.conn.SetAddElements) }
func (r *rules) unpublish(all []*publication) error { return r.change(all, r.conn.SetDeleteElements) }

func (r *rules) change(all []*publication, do func(*nftables.Set, []nftables.SetElement) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	changed := false
	for _, p := range all {
		if !p.key.addr.Is4() {
			continue
		}
		set, e := r.element(p)
		if err := do(set, []nftables.SetElement{e}); err != nil {
			return err
		}
		changed = true
	}
	if !changed {
		return nil
	}
	return r.conn.Flush()
}

// keepOnly removes published ports of containers that are no more.
func (r *rules) keepOnly(live []*publication) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, set := range []*nftables.Set{r.any, r.bound} {
		have, err := r.conn.GetSetElements(set)
		if err != nil {
			return err
		}
		var stale []nftables.SetElement
		for _, e := range have {
			wanted := slices.ContainsFunc(live, func(p *publication) bool {
				s, el := r.element(p)
				return p.key.addr.Is4() && s == set && bytes.Equal(el.Key, e.Key)
			})
			if !wanted {
				stale = append(stale, e)
			}
		}
		if len(stale) == 0 {
			continue
		}
		if err := r.conn.SetDeleteElements(set, stale); err != nil {
			return err
		}
	}
	return r.conn.Flush()
}

// The rest is the words that rules are made of. Registers: reg0… are of four
// bytes and adjacent, so that a concatenation fills them in order; wide ones
// hold an interface name.

const (
	reg0 = unix.NFT_REG32_00
	reg1 = unix.NFT_REG32_01
	reg2 = unix.NFT_REG32_02
)

func wide(n uint32) uint32 { return unix.NFT_REG_1 + n }

func proto(reg uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}}
}

func destination(reg uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}}
}

func port(reg uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}}
}

func iface(key expr.MetaKey, reg uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: reg}}
}

func inSet(s *nftables.Set, reg uint32) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg, SetName: s.Name, SetID: s.ID}}
}

// lookUp loads an address into reg0 and a port into reg1.
func lookUp(s *nftables.Set, reg uint32) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg, DestRegister: reg0, IsDestRegSet: true, SetName: s.Name, SetID: s.ID}}
}

func dnat() []expr.Any {
	return []expr.Any{&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg0, RegProtoMin: reg1, Specified: true}}
}

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

func toThisHost() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg0, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

func sourceIn(cidr string) []expr.Any      { return addressIn(12, cidr) }
func destinationIn(cidr string) []expr.Any { return addressIn(16, cidr) }

func addressIn(offset uint32, cidr string) []expr.Any {
	p := netip.MustParsePrefix(cidr).Masked()
	mask := make([]byte, 4)
	binary.BigEndian.PutUint32(mask, uint32(uint64(0xffffffff)<<(32-p.Bits())))
	return []expr.Any{
		&expr.Payload{DestRegister: reg0, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: slice4(p.Addr())},
	}
}

func equal(reg uint32, data []byte) []expr.Any {
	return []expr.Any{&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data}}
}

func differs(reg uint32, data []byte) []expr.Any {
	return []expr.Any{&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: data}}
}

func ctState(bits uint32) []expr.Any { return ctHas(expr.CtKeySTATE, bits) }

// ipsDstNat is IPS_DST_NAT of the kernel's nf_conntrack_common.h.
const ipsDstNat = 1 << 5

func ctStatusDNAT() []expr.Any { return ctHas(expr.CtKeySTATUS, ipsDstNat) }

func ctHas(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: reg0},
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: make([]byte, 4)},
	}
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() []expr.Any   { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

func jump(c *nftables.Chain) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: c.Name}}
}

// ifname is an interface's name as the kernel compares it: 16 bytes.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// Parts of a concatenated key fill four bytes each.
func inetService(port uint16) []byte { return []byte{byte(port >> 8), byte(port), 0, 0} }

func inetProto(p network.IPProtocol) []byte {
	n := map[network.IPProtocol]byte{network.TCP: unix.IPPROTO_TCP, network.UDP: unix.IPPROTO_UDP, network.SCTP: unix.IPPROTO_SCTP}[p]
	return []byte{n, 0, 0, 0}
}

func slice4(a netip.Addr) []byte { b := a.As4(); return b[:] }
