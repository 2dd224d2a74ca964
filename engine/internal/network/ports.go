package network

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
)

// portKey is a port of the host on one address, or on all (unspecified).
type portKey struct {
	proto network.IPProtocol
	addr  netip.Addr
	port  uint16
}

// A publication leads from a port of the host to one of a container. The host's
// port is held by a socket of ours, so that nobody else takes it; IPv4 traffic
// is turned by a rule before it gets there. What does get there, as IPv6, is
// carried over by this process.
type publication struct {
	key     portKey
	port    network.Port // the container's
	target  netip.AddrPort
	holders []io.Closer
	both    bool // published on [::] as well
}

func (p *publication) close() error {
	var errs []error
	for _, h := range p.holders {
		errs = append(errs, h.Close())
	}
	return errors.Join(errs...)
}

// bindings are what docker ps shows.
func (p *publication) bindings() []network.PortBinding {
	out := []network.PortBinding{{HostIP: p.key.addr, HostPort: strconv.Itoa(int(p.key.port))}}
	if p.both {
		out = append(out, network.PortBinding{HostIP: netip.IPv6Unspecified(), HostPort: out[0].HostPort})
	}
	return out
}

// publish opens the ports that a container asked for, all or none.
func (h *Host) publish(m *member) error {
	target, ok := h.publishedAddress(m)
	if !ok {
		return nil
	}
	for port, bindings := range m.sandbox.Ports {
		for _, b := range bindings {
			p, err := h.open(m, port, b, netip.AddrPortFrom(target, port.Num()))
			if err != nil {
				return errdef.Of(err).Errorf("driver failed programming external connectivity on endpoint %s: %w", m.sandbox.Name, err)
			}
			m.published = append(m.published, p)
		}
	}
	return h.rules.publish(m.published)
}

// publishedAddress is where published ports lead: to the first network with a
// way out.
func (h *Host) publishedAddress(m *member) (netip.Addr, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, ep := range m.sandbox.Endpoints {
		n := h.networks[ep.Network]
		if n != nil && n.bridge != "" && !n.Internal {
			return m.endpoints[n.ID].settings.IPAddress, true
		}
	}
	return netip.Addr{}, false
}

func (h *Host) open(m *member, port network.Port, b network.PortBinding, target netip.AddrPort) (*publication, error) {
	first, last := uint16(0), uint16(0)
	if b.HostPort != "" {
		r, err := network.ParsePortRange(b.HostPort)
		if err != nil {
			return nil, errdef.Invalid.Errorf("invalid host port %q", b.HostPort)
		}
		first, last = r.Start(), r.End()
	}
	addr := b.HostIP
	if !addr.IsValid() {
		addr = netip.IPv4Unspecified()
	}
	var err error
	for n := int(first); n <= int(last); n++ {
		p := &publication{key: portKey{port.Proto(), addr, uint16(n)}, port: port, target: target, both: !b.HostIP.IsValid()}
		if err = h.hold(m, p); err == nil {
			return p, nil
		}
	}
	return nil, err
}

// hold takes a port of the host, with port 0 any free one.
func (h *Host) hold(m *member, p *publication) error {
	h.mu.Lock()
	owner, used := h.portOwnerLocked(p.key)
	h.mu.Unlock()
	if used {
		return errdef.Conflict.Errorf("Bind for %s failed: port is already allocated by container %s", netip.AddrPortFrom(p.key.addr, p.key.port), owner)
	}
	if err := p.bind(); err != nil {
		addr := netip.AddrPortFrom(p.key.addr, p.key.port)
		switch {
		case errors.Is(err, unix.EADDRINUSE):
			return errdef.Conflict.Errorf("failed to bind host port %s/%s: address already in use%s", addr, p.key.proto, holderOf(p.key))
		case errors.Is(err, unix.EADDRNOTAVAIL):
			return errdef.Invalid.Errorf("failed to bind host port %s/%s: this host has no such address", addr, p.key.proto)
		}
		return fmt.Errorf("failed to bind host port %s/%s: %w", addr, p.key.proto, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ports[p.key] = m.sandbox.Name
	return nil
}

func (h *Host) portOwnerLocked(k portKey) (string, bool) {
	if k.port == 0 {
		return "", false
	}
	for other, owner := range h.ports {
		if other.proto == k.proto && other.port == k.port && (other.addr == k.addr || other.addr.IsUnspecified() || k.addr.IsUnspecified()) {
			return owner, true
		}
	}
	return "", false
}

func (p *publication) bind() error {
	if err := p.bindOn(p.key.addr); err != nil {
		return err
	}
	if !p.both {
		return nil
	}
	if err := p.bindOn(netip.IPv6Unspecified()); err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			return errors.Join(err, p.close())
		}
		p.both = false // a host without IPv6
	}
	return nil
}

func (p *publication) bindOn(addr netip.Addr) error {
	at := netip.AddrPortFrom(addr, p.key.port)
	family := "4"
	if addr.Is6() {
		family = "6"
	}
	switch p.key.proto {
	case network.TCP:
		l, err := net.ListenTCP("tcp"+family, net.TCPAddrFromAddrPort(at))
		if err != nil {
			return err
		}
		p.key.port = l.Addr().(*net.TCPAddr).AddrPort().Port()
		p.holders = append(p.holders, l)
		go carry(l, p.target)
	case network.UDP:
		c, err := net.ListenUDP("udp"+family, net.UDPAddrFromAddrPort(at))
		if err != nil {
			return err
		}
		p.key.port = c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		p.holders = append(p.holders, c)
	default:
		if p.key.port == 0 {
			return errdef.Invalid.Errorf("name a host port for %s", p.key.proto)
		}
	}
	return nil
}

// carry serves connections that no rule has turned, until l is closed.
func carry(l *net.TCPListener, target netip.AddrPort) {
	for {
		in, err := l.AcceptTCP()
		if err != nil {
			return
		}
		go func() {
			defer in.Close()
			out, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(target))
			if err != nil {
				return
			}
			defer out.Close()
			var wg sync.WaitGroup
			pipe := func(dst, src *net.TCPConn) {
				wg.Go(func() {
					io.Copy(dst, src)
					dst.CloseWrite()
				})
			}
			pipe(out, in)
			pipe(in, out)
			wg.Wait()
		}()
	}
}

// holderOf names the process that listens on a port, as " by nginx (123)", or
// nothing if it cannot be told.
func holderOf(k portKey) string {
	var inodes []string
	for _, suffix := range []string{"", "6"} {
		inodes = append(inodes, socketInodes("/proc/net/"+string(k.proto)+suffix, k.port)...)
	}
	for _, inode := range inodes {
		links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
		for _, link := range links {
			if target, err := os.Readlink(link); err == nil && target == "socket:["+inode+"]" {
				pid := strings.Split(link, "/")[2]
				name, _ := os.ReadFile("/proc/" + pid + "/comm")
				return fmt.Sprintf(" by %s (process %s)", strings.TrimSpace(string(name)), pid)
			}
		}
	}
	return ""
}

// socketInodes are those bound to a port, from a table of proc(5).
func socketInodes(table string, port uint16) (out []string) {
	f, err := os.Open(table)
	if err != nil {
		return nil
	}
	defer f.Close()
	suffix := fmt.Sprintf(":%04X", port)
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) > 9 && strings.HasSuffix(fields[1], suffix) && (fields[3] == "0A" || strings.HasPrefix(filepath.Base(table), "udp")) {
			out = append(out, fields[9])
		}
	}
	return out
}
