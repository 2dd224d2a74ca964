package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/minke-os/minke/internal/order"
)

const (
	// nextAfter is when the next server is asked, too, because the one before
	// has not answered: programs give up after 5 seconds, whatever the number
	// of servers.
	nextAfter    = time.Second
	forwardLimit = 4500 * time.Millisecond
	// avoidFor is how long a server that did not answer is asked last.
	avoidFor = 10 * time.Second
)

// upstream asks for the names that are not ours: the container's own servers
// (--dns) from its namespace, where a server of its network or its own loopback
// may be meant, else the host's from that of the host, where their loopback
// addresses are (dnsmasq, systemd-resolved).
type upstream struct {
	own     []netip.Addr
	host    func() []netip.Addr // read for each query, so that changes are followed
	outside func() bool         // whether the container has a way out
	dial    func(ctx context.Context, network, addr string) (net.Conn, error)

	mu  sync.Mutex
	bad map[netip.Addr]time.Time // did not answer
}

func (h *Host) upstream(m *member) *upstream {
	u := &upstream{own: m.sandbox.DNS.Servers, bad: map[netip.Addr]time.Time{}}
	u.host = func() []netip.Addr { return hostResolv().servers }
	u.outside = func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		for id := range m.endpoints {
			if n := h.networks[id]; n != nil && n.outside() {
				return true
			}
		}
		return false
	}
	u.dial = (&net.Dialer{}).DialContext
	if len(u.own) > 0 {
		u.dial = func(ctx context.Context, network, addr string) (c net.Conn, err error) {
			ns, err := openNamespace(m.sandbox.Pid)
			if err != nil {
				return nil, err
			}
			defer ns.close()
			err = inNamespace(ns.fd, func() error {
				c, err = (&net.Dialer{}).DialContext(ctx, network, addr)
				return err
			})
			return c, err
		}
	}
	return u
}

// servers are those to ask, in order: those that did not answer lately last.
func (u *upstream) servers() []netip.Addr {
	if !u.outside() {
		return nil // as Docker: an internal network has names, and nothing else
	}
	list := slices.Clone(u.own)
	if len(list) == 0 {
		list = u.host()
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	late := func(a netip.Addr) int {
		if time.Since(u.bad[a]) < avoidFor {
			return 1
		}
		return 0
	}
	order.By(list, func(a, b netip.Addr) int { return late(a) - late(b) })
	return list
}

var errRefused = errors.New("the server could not answer")

// ask asks the servers, each a second after the one before or as soon as that
// one fails; the first good answer counts. nil means that there was none.
func (u *upstream) ask(network string, query []byte) []byte {
	ctx, cancel := context.WithTimeout(context.Background(), forwardLimit)
	defer cancel()
	type result struct {
		server netip.Addr
		reply  []byte
		err    error
	}
	servers := u.servers()
	results := make(chan result, len(servers))
	var second []byte // a refusal, should there be nothing better
	waiting := map[netip.Addr]bool{}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for next, pending := 0, 0; next < len(servers) || pending > 0; {
		fire := timer.C
		if next == len(servers) {
			fire = nil
		}
		select {
		case <-fire:
			server := servers[next]
			waiting[server] = true
			next++
			pending++
			timer.Reset(nextAfter)
			go func() {
				reply, err := u.askOne(ctx, network, server, query)
				results <- result{server, reply, err}
			}()
		case r := <-results:
			pending--
			delete(waiting, r.server)
			u.note(r.server, r.err)
			if r.err == nil {
				for _, before := range servers[:slices.Index(servers, r.server)] {
					if waiting[before] {
						u.note(before, context.DeadlineExceeded)
					}
				}
				return r.reply
			}
			if r.reply != nil {
				second = r.reply
			}
			timer.Reset(0)
		case <-ctx.Done():
			for range pending {
				u.note((<-results).server, ctx.Err())
			}
			return second
		}
	}
	return second
}

func (u *upstream) note(server netip.Addr, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case err == nil:
		delete(u.bad, server)
	case !errors.Is(err, errRefused) && !errors.Is(err, context.Canceled):
		u.bad[server] = time.Now()
	}
}

// askOne asks one server.
func (u *upstream) askOne(ctx context.Context, network string, server netip.Addr, query []byte) ([]byte, error) {
	conn, err := u.dial(ctx, network, netip.AddrPortFrom(server, 53).String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var reply []byte
	if network == "tcp" {
		if err := writeMessage(conn, query); err != nil {
			return nil, err
		}
		reply, err = readMessage(conn)
	} else {
		reply, err = exchange(conn, query)
	}
	if err != nil {
		return nil, err
	}
	var p dnsmessage.Parser
	head, err := p.Start(reply)
	if err != nil {
		return nil, err
	}
	if head.RCode == dnsmessage.RCodeServerFailure || head.RCode == dnsmessage.RCodeRefused {
		return reply, errRefused
	}
	return reply, nil
}

// exchange sends a datagram and waits for the one that answers it.
func exchange(conn net.Conn, query []byte) ([]byte, error) {
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	size := minUDP
	if s, ok := payloadSize(query); ok {
		size = s
	}
	buf := make([]byte, size)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		if n >= 12 && buf[0] == query[0] && buf[1] == query[1] {
			return buf[:n], nil
		}
	}
}

// forward has others answer. If none does, it says so.
func (r *resolver) forward(network string, query []byte) []byte {
	var p dnsmessage.Parser
	head, err := p.Start(query)
	if err != nil || head.Response {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	if reply := r.ask(network, query); reply != nil {
		return reply
	}
	return pack(dnsmessage.Message{
		Header:    dnsmessage.Header{ID: head.ID, Response: true, RecursionDesired: head.RecursionDesired, RecursionAvailable: true, RCode: dnsmessage.RCodeServerFailure},
		Questions: []dnsmessage.Question{q},
	})
}
