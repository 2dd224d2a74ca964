package network

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netns"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// resolverAddr is where containers on user-defined networks ask for names, as
// in Docker.
var resolverAddr = netip.MustParseAddr("127.0.0.11")

const (
	// ttl is short, for a container that restarts may get another address.
	ttl    = 5 // seconds
	maxUDP = 4096
	minUDP = 512 // what every client takes (RFC 1035, 4.2.1)
	// inFlight bounds the queries of one container that wait for a server
	// outside; more are dropped, and asked again by the client.
	inFlight = 64
	maxConns = 64 // by TCP, of one container
	connIdle = 10 * time.Second
)

// A resolver answers the names of one container. It listens in the container's
// network namespace at ports that rules there turn 127.0.0.11:53 to, so that
// the container may itself listen on port 53.
type resolver struct {
	udp  *net.UDPConn
	tcp  *net.TCPListener
	wg   sync.WaitGroup
	slot chan struct{}

	answer func(q dnsmessage.Question) (answers []dnsmessage.Resource, known bool)
	ask    func(network string, query []byte) []byte // a server outside; nil: it cannot

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// needsResolver reports whether a container asks us: on user-defined networks,
// and where the host's own servers are out of a container's reach.
func (h *Host) needsResolver(m *member) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id := range m.endpoints {
		n := h.networks[id]
		if n == nil || !n.wired() {
			continue
		}
		if n.Name != network.NetworkBridge {
			return true
		}
		if len(m.sandbox.DNS.Servers) == 0 && len(reachable(hostResolv().servers)) == 0 {
			return true
		}
	}
	return false
}

// serveNames starts the resolver of a member.
func (h *Host) serveNames(m *member, ns *namespace) (*resolver, error) {
	r := &resolver{
		slot: make(chan struct{}, inFlight), conns: map[net.Conn]struct{}{},
		answer: func(q dnsmessage.Question) ([]dnsmessage.Resource, bool) { return h.answer(m, q) },
		ask:    h.upstream(m).ask,
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

// redirect turns port 53 of 127.0.0.11 to ours, in the container's namespace.
func (r *resolver) redirect(ns netns.NsHandle) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		return err
	}
	// Deleting has the kernel wait for all processors, some 10 ms, so it is done
	// only where a minked before us left its table.
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "minke_dns"}
	c.CreateTable(t)
	r.queueRedirect(c, t)
	if err = c.Flush(); errors.Is(err, unix.EEXIST) {
		c.DelTable(t)
		c.CreateTable(t)
		r.queueRedirect(c, t)
		err = c.Flush()
	}
	return err
}

func (r *resolver) queueRedirect(c *nftables.Conn, t *nftables.Table) {
	chain := c.AddChain(&nftables.Chain{
		Name: "output", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	})
	for _, to := range []struct {
		proto byte
		port  uint16
	}{{unix.IPPROTO_UDP, portOf(r.udp.LocalAddr())}, {unix.IPPROTO_TCP, portOf(r.tcp.Addr())}} {
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: slices.Concat(
			addressIn(ipv4Destination, resolverAddr.String()+"/32"), proto(reg(0)), equal(reg(0), []byte{to.proto}), port(reg(0)), equal(reg(0), []byte{0, 53}),
			[]expr.Any{
				&expr.Immediate{Register: reg(0), Data: resolverAddr.AsSlice()},
				&expr.Immediate{Register: reg(1), Data: []byte{byte(to.port >> 8), byte(to.port)}},
			},
			dnat(&family{proto: unix.NFPROTO_IPV4, addrLength: 4}),
		)})
	}
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
		if reply := r.own(query, maxUDP); reply != nil {
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
		full := len(r.conns) >= maxConns
		if !full {
			r.conns[conn] = struct{}{}
		}
		r.mu.Unlock()
		if full {
			conn.Close()
			continue
		}
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
		conn.SetDeadline(time.Now().Add(connIdle))
		query, err := readMessage(conn)
		if err != nil {
			return
		}
		reply := r.own(query, 65535)
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
// limit is how long the answer may be.
func (r *resolver) own(query []byte, limit int) []byte {
	var p dnsmessage.Parser
	head, err := p.Start(query)
	if err != nil || head.Response || head.OpCode != 0 {
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
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: head.ID, Response: true, RecursionDesired: head.RecursionDesired, RecursionAvailable: true},
		Questions: []dnsmessage.Question{q}, Answers: answers,
	}
	if size, ok := payloadSize(query); ok {
		limit = min(limit, size)
		var h dnsmessage.ResourceHeader
		h.SetEDNS0(maxUDP, dnsmessage.RCodeSuccess, false) // fails for no such values
		m.Additionals = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{}}}
	} else {
		limit = min(limit, minUDP)
	}
	for b := pack(m); ; b = pack(m) {
		if len(b) <= limit || len(m.Answers) == 0 {
			return b
		}
		// The client asks again by TCP, or does with some.
		m.Truncated = true
		m.Answers = m.Answers[:len(m.Answers)/2]
	}
}

// payloadSize is how long a datagram the client takes, if it says so (EDNS,
// RFC 6891).
func payloadSize(query []byte) (int, bool) {
	var p dnsmessage.Parser
	if _, err := p.Start(query); err != nil {
		return 0, false
	}
	if p.SkipAllQuestions() != nil || p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return 0, false
	}
	for {
		h, err := p.AdditionalHeader()
		if err != nil {
			return 0, false
		}
		if h.Type == dnsmessage.TypeOPT {
			return max(int(h.Class), minUDP), true
		}
		if p.SkipAdditional() != nil {
			return 0, false
		}
	}
}

func pack(m dnsmessage.Message) []byte {
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}
