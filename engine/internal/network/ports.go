package network

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
)

// portKey is a port of the host on one address, or on all of a family
// (unspecified).
type portKey struct {
	proto network.IPProtocol
	addr  netip.Addr
	port  uint16
}

// A publication leads from a port of the host to one of a container. The host's
// port is held by a socket of ours, so that nobody else takes it; traffic is
// turned by a rule before it gets there. What does get there, as IPv6 for a
// container without, is carried over by this process.
//
// A direct one only opens the container's own port, on a network in gateway
// mode routed.
type publication struct {
	key    portKey
	port   network.Port // the container's
	target netip.AddrPort
	direct bool
	holder io.Closer // nil for SCTP, and where another process took the port while we were away
}

func (p *publication) close() error {
	if p.holder == nil {
		return nil
	}
	return p.holder.Close()
}

// binding is what docker ps shows.
func (p *publication) binding() network.PortBinding {
	return network.PortBinding{HostIP: p.key.addr, HostPort: strconv.Itoa(int(p.key.port))}
}

// publish opens ports, all or none. With again they were open before this
// process began: who has taken one since does not get its traffic.
func (h *Host) publish(m *member, ports network.PortMap, again bool) error {
	for port, bindings := range ports {
		if len(bindings) == 0 && again {
			bindings = []network.PortBinding{{}} // direct
		}
		for _, b := range bindings {
			opened, err := h.open(m, port, b, again)
			if err != nil {
				err = errdef.Of(err).Errorf("driver failed programming external connectivity on endpoint %s: %w", m.sandbox.Name, err)
				return errors.Join(err, h.unpublish(m))
			}
			h.mu.Lock()
			m.published = append(m.published, opened...)
			h.mu.Unlock()
		}
	}
	if err := h.rules.change(nil, h.rules.elementsOfPorts(m.published)); err != nil {
		return errors.Join(err, h.unpublish(m))
	}
	forgetFlows(m.published)
	return nil
}

// unpublish closes all ports of a container.
func (h *Host) unpublish(m *member) error {
	err := h.rules.change(h.rules.elementsOfPorts(m.published), nil)
	h.mu.Lock()
	gone := m.published
	m.published = nil
	for _, p := range gone {
		delete(h.ports, p.key)
	}
	h.mu.Unlock()
	forgetFlows(gone)
	errs := []error{err}
	for _, p := range gone {
		errs = append(errs, p.close())
	}
	return errors.Join(errs...)
}

// forgetFlows has the kernel look at the rules again for UDP packets, which it
// otherwise turns to where the first one of their flow went, for as long as
// they come.
func forgetFlows(all []*publication) {
	for _, p := range all {
		if p.port.Proto() != network.UDP || p.direct {
			continue
		}
		f := &netlink.ConntrackFilter{}
		f.AddProtocol(unix.IPPROTO_UDP)
		f.AddPort(netlink.ConntrackOrigDstPort, p.key.port)
		family := netlink.InetFamily(unix.AF_INET)
		if p.key.addr.Is6() {
			family = unix.AF_INET6
		}
		// Without conntrack in the kernel there are no flows either.
		netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, f)
	}
}

// open finds the host's port, in a range the first that is free, and takes it on
// each of the addresses.
func (h *Host) open(m *member, port network.Port, b network.PortBinding, again bool) ([]*publication, error) {
	x := m.exits
	first, last := uint16(0), uint16(0)
	if b.HostPort != "" {
		r, err := network.ParsePortRange(b.HostPort)
		if err != nil {
			return nil, errdef.Invalid.Errorf("invalid host port %q", b.HostPort)
		}
		first, last = r.Start(), r.End()
	}
	addrs := []netip.Addr{b.HostIP}
	if !b.HostIP.IsValid() {
		addrs = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
		if x.in4 != nil && x.in4.options.bind.IsValid() && x.in4.options.bind != netip.IPv4Unspecified() {
			addrs = []netip.Addr{x.in4.options.bind}
		}
	}
	var direct, wanted []*publication
	for _, a := range addrs {
		p := &publication{key: portKey{port.Proto(), a, 0}, port: port}
		in, to := x.in4, x.to4
		if a.Is6() && x.in6 != nil {
			in, to = x.in6, x.to6
		}
		p.target = netip.AddrPortFrom(to, port.Num())
		switch {
		case in == nil:
		case in.options.mode(to) == modeRouted && a.Is4() == to.Is4():
			p.direct, p.key = true, portKey{}
			direct = append(direct, p)
		case a.Is4() == to.Is4() || a.Is6() && port.Proto() != network.SCTP:
			wanted = append(wanted, p)
		}
	}
	if len(wanted) == 0 {
		return direct, nil
	}
	tries := 1
	if first == 0 {
		tries = 16 // what is free for IPv4 need not be for IPv6
	}
	var err error
	for n := int(first); n <= int(last); n++ {
		for range tries {
			var got []*publication
			if got, err = h.holdAll(m, wanted, uint16(n), !b.HostIP.IsValid(), again); err == nil {
				return append(direct, got...), nil
			}
		}
	}
	return nil, err
}

// holdAll takes one port on several addresses.
func (h *Host) holdAll(m *member, wanted []*publication, port uint16, everywhere, again bool) (got []*publication, err error) {
	for _, p := range wanted {
		p.key.port = port
		err = h.hold(m, p, again)
		if err != nil && everywhere && p.key.addr.Is6() && !errdef.Is(err, errdef.Conflict) {
			err = nil // a host without IPv6
			continue
		}
		if err != nil {
			break
		}
		got = append(got, p)
		port = p.key.port
	}
	if err == nil {
		return got, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range got {
		delete(h.ports, p.key)
		err = errors.Join(err, p.close())
	}
	return nil, err
}

// hold takes a port of the host, with port 0 any free one.
func (h *Host) hold(m *member, p *publication, again bool) error {
	if p.key.proto == network.SCTP && p.key.port == 0 {
		// No socket finds one: from the range that is nobody's (RFC 6335).
		p.key.port = 49152 + uint16(rand.N(65536-49152))
	}
	h.mu.Lock()
	owner, used := h.portOwnerLocked(p.key)
	if !used && p.key.port != 0 {
		h.ports[p.key] = m.sandbox.Name
	}
	h.mu.Unlock()
	if used {
		return errdef.Conflict.Errorf("Bind for %s failed: port is already allocated by container %s", netip.AddrPortFrom(p.key.addr, p.key.port), owner)
	}
	asked := p.key
	err := p.bind()
	if again && errors.Is(err, unix.EADDRINUSE) {
		h.log.Warn("a published port was taken by another process; its traffic still goes to the container", "container", m.sandbox.Name, "port", p.key.port, "holder", holderOf(p.key))
		err = nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		h.ports[p.key] = m.sandbox.Name
		return nil
	}
	if asked.port != 0 {
		delete(h.ports, asked)
	}
	addr := netip.AddrPortFrom(p.key.addr, p.key.port)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return errdef.Conflict.Errorf("failed to bind host port %s/%s: address already in use%s", addr, p.key.proto, holderOf(p.key))
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return errdef.Invalid.Errorf("failed to bind host port %s/%s: cannot assign requested address: this host has no such address", addr, p.key.proto)
	}
	return fmt.Errorf("failed to bind host port %s/%s: %w", addr, p.key.proto, err)
}

func (h *Host) portOwnerLocked(k portKey) (string, bool) {
	if k.port == 0 {
		return "", false
	}
	for other, owner := range h.ports {
		if other.proto == k.proto && other.port == k.port && other.addr.Is4() == k.addr.Is4() &&
			(other.addr == k.addr || other.addr.IsUnspecified() || k.addr.IsUnspecified()) {
			return owner, true
		}
	}
	return "", false
}

// bind holds the port with a socket.
func (p *publication) bind() error {
	at := netip.AddrPortFrom(p.key.addr, p.key.port)
	family := "4"
	if at.Addr().Is6() {
		family = "6"
	}
	switch p.key.proto {
	case network.TCP:
		l, err := net.ListenTCP("tcp"+family, net.TCPAddrFromAddrPort(at))
		if err != nil {
			return err
		}
		p.key.port, p.holder = l.Addr().(*net.TCPAddr).AddrPort().Port(), l
		go carry(l, p.target)
	case network.UDP:
		c, err := net.ListenUDP("udp"+family, net.UDPAddrFromAddrPort(at))
		if err != nil {
			return err
		}
		p.key.port, p.holder = c.LocalAddr().(*net.UDPAddr).AddrPort().Port(), c
		go carryUDP(c, p.target)
	}
	return nil
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
