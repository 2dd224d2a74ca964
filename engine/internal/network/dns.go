package network

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// resolverAddr is where containers on user-defined networks ask for names, as
// in Docker.
var resolverAddr = netip.MustParseAddr("127.0.0.11")

const (
	// ttl is short, for a container that restarts may get another address.
	ttl             = 5 // seconds
	upstreamTimeout = 3 * time.Second
	maxUDP          = 4096
	// inFlight bounds the queries of one container that wait for a server
	// outside; more are dropped, and asked again by the client.
	inFlight = 64
)

// A resolver answers the names of one container. It listens in the container's
// network namespace at ports that rules there turn 127.0.0.11:53 to, so that
// the container may itself listen on port 53.
type resolver struct {
	udp  *net.UDPConn
	tcp  *net.TCPListener
	wg   sync.WaitGroup
	slot chan struct{}

	answer  func(q dnsmessage.Question) (answers []dnsmessage.Resource, known bool)
	servers func() []netip.AddrPort // to ask for other names; none: refuse

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

func (m *member) needsResolver(h *Host) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id := range m.endpoints {
		if n := h.networks[id]; n != nil && n.bridge != "" && n.Name != "bridge" {
			return true
		}
	}
	return false
}

// serveNames starts the resolver of a member.
func (h *Host) serveNames(m *member, ns *namespace) (*resolver, error) {
	r := &resolver{
		slot: make(chan struct{}, inFlight), conns: map[net.Conn]struct{}{},
		answer:  func(q dnsmessage.Question) ([]dnsmessage.Resource, bool) { return h.answer(m, q) },
		servers: func() []netip.AddrPort { return h.upstream(m) },
	}
	err := inNamespace(ns.fd, func() (err error) {
		if r.udp, err = net.ListenUDP("udp4", &net.UDPAddr{IP: resolverAddr.AsSlice()}); err != nil {
			return err
		}
		r.tcp, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: resolverAddr.AsSlice()})
		return err
	})
	if err == nil {
		err = r.redirect(ns.fd)
	}
	if err != nil {
		r.close()
		return nil, err
	}
	r.wg.Go(r.serveUDP)
	r.wg.Go(r.serveTCP)
	return r, nil
}

// inNamespace runs f on a thread that is in a network namespace. Sockets that
// f opens stay there.
func inNamespace(ns netns.NsHandle, f func() error) error {
	result := make(chan error, 1)
	go func() {
		// The thread ends with the goroutine unless it is back home.
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			result <- err
			return
		}
		defer home.Close()
		if err := netns.Set(ns); err != nil {
			result <- err
			return
		}
		err = f()
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

// redirect turns port 53 of 127.0.0.11 to ours, in the container's namespace.
func (r *resolver) redirect(ns netns.NsHandle) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		return err
	}
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "minke_dns"}
	c.AddTable(t) // so that deleting it cannot fail
	c.DelTable(t)
	c.AddTable(t)
	chain := c.AddChain(&nftables.Chain{
		Name: "output", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	})
	for _, to := range []struct {
		proto byte
		port  uint16
	}{{unix.IPPROTO_UDP, portOf(r.udp.LocalAddr())}, {unix.IPPROTO_TCP, portOf(r.tcp.Addr())}} {
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: slices.Concat(
			destinationIn(resolverAddr.String()+"/32"), proto(reg0), equal(reg0, []byte{to.proto}), port(reg0), equal(reg0, []byte{0, 53}),
			[]expr.Any{
				&expr.Immediate{Register: reg0, Data: resolverAddr.AsSlice()},
				&expr.Immediate{Register: reg1, Data: []byte{byte(to.port >> 8), byte(to.port)}},
			},
			dnat(),
		)})
	}
	return c.Flush()
}

func portOf(a net.Addr) uint16 { return netip.MustParseAddrPort(a.String()).Port() }

func (r *resolver) close() {
	if r.udp != nil {
		r.udp.Close()
	}
	if r.tcp != nil {
		r.tcp.Close()
	}
	r.mu.Lock()
	for c := range r.conns {
		c.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}

func (r *resolver) serveUDP() {
	buf := make([]byte, maxUDP)
	for {
		n, client, err := r.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		query := buf[:n]
		if reply := r.own(query); reply != nil {
			r.udp.WriteToUDPAddrPort(reply, client)
			continue
		}
		select {
		case r.slot <- struct{}{}:
		default:
			continue
		}
		query = slices.Clone(query)
		r.wg.Go(func() {
			defer func() { <-r.slot }()
			if reply := r.forward("udp", query); reply != nil {
				r.udp.WriteToUDPAddrPort(reply, client)
			}
		})
	}
}

func (r *resolver) serveTCP() {
	for {
		conn, err := r.tcp.Accept()
		if err != nil {
			return
		}
		r.mu.Lock()
		r.conns[conn] = struct{}{}
		r.mu.Unlock()
		r.wg.Go(func() {
			defer func() {
				conn.Close()
				r.mu.Lock()
				delete(r.conns, conn)
				r.mu.Unlock()
			}()
			r.converse(conn)
		})
	}
}

// converse answers queries on one connection, each behind its length
// (RFC 1035, 4.2.2).
func (r *resolver) converse(conn net.Conn) {
	for {
		conn.SetDeadline(time.Now().Add(2 * upstreamTimeout))
		query, err := readMessage(conn)
		if err != nil {
			return
		}
		reply := r.own(query)
		if reply == nil {
			reply = r.forward("tcp", query)
		}
		if reply == nil || writeMessage(conn, reply) != nil {
			return
		}
	}
}

func readMessage(c io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(c, msg)
	return msg, err
}

func writeMessage(c io.Writer, msg []byte) error {
	_, err := c.Write(append([]byte{byte(len(msg) >> 8), byte(len(msg))}, msg...))
	return err
}

// own answers a query about our names; nil if it is about others, or broken.
func (r *resolver) own(query []byte) []byte {
	var p dnsmessage.Parser
	head, err := p.Start(query)
	if err != nil || head.Response {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	answers, known := r.answer(q)
	if !known {
		return nil
	}
	return pack(dnsmessage.Message{
		Header:    dnsmessage.Header{ID: head.ID, Response: true, RecursionDesired: head.RecursionDesired, RecursionAvailable: true},
		Questions: []dnsmessage.Question{q}, Answers: answers,
	})
}

func pack(m dnsmessage.Message) []byte {
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

// forward asks the servers outside, one after the other, from the host's
// network; if none answers, it says so.
func (r *resolver) forward(network string, query []byte) []byte {
	var p dnsmessage.Parser
	head, err := p.Start(query)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	for _, server := range r.servers() {
		if reply, err := ask(network, server, query); err == nil {
			return reply
		}
	}
	return pack(dnsmessage.Message{
		Header:    dnsmessage.Header{ID: head.ID, Response: true, RecursionDesired: head.RecursionDesired, RecursionAvailable: true, RCode: dnsmessage.RCodeServerFailure},
		Questions: []dnsmessage.Question{q},
	})
}

func ask(network string, server netip.AddrPort, query []byte) ([]byte, error) {
	conn, err := net.DialTimeout(network, server.String(), upstreamTimeout)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(upstreamTimeout))
	if network == "tcp" {
		if err := writeMessage(conn, query); err != nil {
			return nil, err
		}
		return readMessage(conn)
	}
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	buf := make([]byte, maxUDP)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		if n >= 2 && buf[0] == query[0] && buf[1] == query[1] {
			return buf[:n], nil
		}
	}
}

// answer finds a name on the networks of m. A name that is known but has no
// address of the type asked for gets an empty answer.
func (h *Host) answer(m *member, q dnsmessage.Question) (out []dnsmessage.Resource, known bool) {
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: ttl}
	if ip, ok := reverseAddr(name); ok && q.Type == dnsmessage.TypePTR {
		if owner := h.ownerOf(m, ip); owner != "" {
			if target, err := dnsmessage.NewName(owner + "."); err == nil {
				return []dnsmessage.Resource{{Header: head, Body: &dnsmessage.PTRResource{PTR: target}}}, true
			}
		}
		return nil, false
	}
	addrs := h.addressesOf(m, name)
	for _, a := range addrs {
		switch {
		case a.Is4() && q.Type == dnsmessage.TypeA:
			out = append(out, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: a.As4()}})
		case a.Is6() && q.Type == dnsmessage.TypeAAAA:
			out = append(out, dnsmessage.Resource{Header: head, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	if len(out) > 1 {
		// Clients take the first: spread them.
		n := int(time.Now().UnixNano()/1000) % len(out)
		out = append(out[n:], out[:n]...)
	}
	return out, len(addrs) > 0
}

func (h *Host) addressesOf(m *member, name string) (out []netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if name == "host.docker.internal" || name == "gateway.docker.internal" {
		for id := range m.endpoints {
			if n := h.networks[id]; n != nil && n.bridge != "" {
				return []netip.Addr{n.gateway()}
			}
		}
	}
	for id := range m.endpoints {
		n := h.networks[id]
		if n == nil || n.bridge == "" {
			continue
		}
		// "web.mynet" names the network as well.
		short, ok := strings.CutSuffix(name, "."+strings.ToLower(n.Name))
		if !ok {
			short = name
		}
		for _, other := range h.members {
			l, on := other.endpoints[id]
			if !on || !slices.ContainsFunc(l.names, func(s string) bool { return strings.EqualFold(s, short) }) {
				continue
			}
			for _, p := range l.prefixes() {
				out = append(out, p.Addr())
			}
		}
	}
	return out
}

func (h *Host) ownerOf(m *member, ip netip.Addr) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id := range m.endpoints {
		for _, other := range h.members {
			l, on := other.endpoints[id]
			if on && len(l.names) > 0 && (l.settings.IPAddress == ip || l.settings.GlobalIPv6Address == ip) {
				return l.names[0] + "." + h.networks[id].Name
			}
		}
	}
	return ""
}

// reverseAddr reads "4.3.2.1.in-addr.arpa" and the long form of IPv6.
func reverseAddr(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(rest, ".")
		slices.Reverse(parts)
		a, err := netip.ParseAddr(strings.Join(parts, "."))
		return a, err == nil
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa")
	digits := strings.Split(rest, ".")
	if !ok || len(digits) != 32 {
		return netip.Addr{}, false
	}
	slices.Reverse(digits)
	var sb strings.Builder
	for i, d := range digits {
		if i > 0 && i%4 == 0 {
			sb.WriteByte(':')
		}
		sb.WriteString(d)
	}
	a, err := netip.ParseAddr(sb.String())
	return a, err == nil
}

// upstream are the servers that a member's other names are asked from: its
// own, else the host's. A container without a way out gets none.
func (h *Host) upstream(m *member) (out []netip.AddrPort) {
	h.mu.Lock()
	outside := false
	for id := range m.endpoints {
		n := h.networks[id]
		outside = outside || n != nil && n.bridge != "" && !n.Internal
	}
	h.mu.Unlock()
	if !outside {
		return nil
	}
	servers := m.sandbox.DNS.Servers
	if len(servers) == 0 {
		servers = hostResolv().servers
	}
	for _, s := range servers {
		out = append(out, netip.AddrPortFrom(s, 53))
	}
	return out
}
