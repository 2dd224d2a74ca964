package network

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
)

// namespace is a container's network namespace, seen by netlink.
type namespace struct {
	fd     netns.NsHandle
	handle *netlink.Handle
}

func openNamespace(pid int) (*namespace, error) {
	fd, err := netns.GetFromPid(pid)
	if err != nil {
		return nil, fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	h, err := netlink.NewHandleAt(fd, unix.NETLINK_ROUTE)
	if err != nil {
		fd.Close()
		return nil, err
	}
	return &namespace{fd, h}, nil
}

func (ns *namespace) close() {
	ns.handle.Close()
	ns.fd.Close()
}

// inNamespace runs f on a thread that is in a network namespace. Sockets that
// f opens stay there.
func inNamespace(ns netns.NsHandle, f func() error) error {
	result := make(chan error, 1)
	go func() {
		// The thread ends with the goroutine unless it is back home.
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // it stands for the process in /proc
			result <- inNamespace(ns, f)
			runtime.UnlockOSThread()
			return
		}
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

func (ns *namespace) loopback() error {
	lo, err := ns.handle.LinkByIndex(1)
	if err != nil {
		return err
	}
	return ns.handle.LinkSetUp(lo)
}

// nameFor is the container's name for the interface of an endpoint: the one
// asked for, or the network's prefix and the first number that is free.
func (ns *namespace) nameFor(n *state, l *leg) (string, error) {
	taken := func(name string) bool { _, err := ns.handle.LinkByName(name); return err == nil }
	if name := l.settings.DriverOpts[optIfName]; name != "" {
		if taken(name) {
			return "", errdef.Conflict.Errorf("the container has an interface %s already", name)
		}
		return name, nil
	}
	for i := 0; ; i++ {
		if name := n.options.ifPrefix + strconv.Itoa(i); !taken(name) {
			return name, nil
		}
	}
}

// brStateDisabled is BR_STATE_DISABLED of linux/if_bridge.h.
const brStateDisabled = 0

// addrGenNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const addrGenNone = 1

// plug makes the cable: one end on the bridge or parent, the other in the
// container.
func (h *Host) plug(ns *namespace, n *state, l *leg) error {
	name, err := ns.nameFor(n, l)
	if err != nil {
		return err
	}
	if n.bridge == "" {
		return h.plugOffshoot(ns, n, l, name)
	}
	bridge, err := h.links.LinkByName(n.bridge)
	if err != nil {
		return err
	}
	var tail [4]byte
	rand.Read(tail[:]) // a name used before may still be on its way out
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex, attrs.Flags = "veth"+hex.EncodeToString(tail[:]), bridge.Attrs().MTU, bridge.Attrs().Index, net.FlagUp
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: name, PeerHardwareAddr: net.HardwareAddr(l.settings.MacAddress), PeerNamespace: netlink.NsFd(ns.fd),
	}
	if err := h.links.LinkAdd(veth); err != nil {
		return err
	}
	l.cable = veth.Index
	err = h.links.LinkSetAlias(veth, h.alias())
	// Where br_netfilter turns a published port back on the bridge itself,
	// a container that calls its own must get the packet by the same port.
	if err == nil {
		err = h.links.LinkSetHairpin(veth, true)
	}
	if err == nil && !n.options.icc && !bridgesAreFiltered() {
		err = h.links.LinkSetIsolated(veth, true)
	}
	if err == nil {
		err = ns.configure(n, l, name)
	}
	if err != nil {
		return errors.Join(err, h.links.LinkDel(veth))
	}
	return nil
}

// findCables learns which cables of the host lead to a container that was plugged
// in before this process began.
func (h *Host) findCables(ns *namespace, m *member) error {
	for id, l := range m.endpoints {
		if n := h.network(id); n == nil || n.bridge == "" {
			continue
		}
		index, err := ns.linkOf(l)
		if err != nil {
			return err
		}
		if index == 0 {
			continue // somebody took it away
		}
		link, err := ns.handle.LinkByIndex(index)
		if err != nil {
			return err
		}
		l.cable = link.Attrs().ParentIndex
	}
	return nil
}

// cut has a bridge take nothing from a cable, nor send there. The kernel removes
// it with the container's namespace in its own time, and until then the old
// container answers for an address that may be another's by then.
func (h *Host) cut(cable int) error {
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(cable)
	port := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	port.AddRtAttr(nl.IFLA_BRPORT_STATE, []byte{brStateDisabled})
	port.AddRtAttr(nl.IFLA_BRPORT_FLUSH, nil)
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	req.AddData(msg)
	req.AddData(port)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	switch {
	case err == nil, errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENETDOWN):
		return nil // or it was faster
	}
	// A bridge with a spanning tree decides for itself.
	return h.links.LinkDel(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Index: cable}})
}

// bridgesAreFiltered reports whether br_netfilter is loaded.
func bridgesAreFiltered() bool {
	_, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables")
	return err == nil
}

// filterBridge has packets between the ports of a bridge go through the packet
// rules, whatever the host's default, if br_netfilter is there.
func filterBridge(link netlink.Link) error {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(link.Attrs().Index)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_BR_NF_CALL_IPTABLES, []byte{1})
	data.AddRtAttr(nl.IFLA_BR_NF_CALL_IP6TABLES, []byte{1})
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	req.AddData(msg)
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// plugOffshoot makes a macvlan or ipvlan interface.
func (h *Host) plugOffshoot(ns *namespace, n *state, l *leg, name string) error {
	parent, err := h.links.LinkByName(n.parent())
	if err != nil {
		return err
	}
	link := h.offshoot(n, parent, name)
	link.Attrs().Namespace = netlink.NsFd(ns.fd)
	link.Attrs().HardwareAddr = net.HardwareAddr(l.settings.MacAddress)
	if err := h.addOffshoot(n, link); err != nil {
		return err
	}
	err = ns.configure(n, l, name)
	made, ferr := ns.handle.LinkByName(name)
	if ferr != nil {
		return errors.Join(err, ferr)
	}
	if err != nil {
		return errors.Join(err, ns.handle.LinkDel(made))
	}
	l.settings.MacAddress = network.HardwareAddr(made.Attrs().HardwareAddr)
	return nil
}

func (ns *namespace) configure(n *state, l *leg, name string) error {
	eth, err := ns.handle.LinkByName(name)
	if err != nil {
		return err
	}
	if !n.EnableIPv6 {
		// No link-local address either: nothing here speaks IPv6.
		if err := ns.handle.LinkSetIP6AddrGenMode(eth, addrGenNone); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("switch IPv6 off: %w", err)
		}
	}
	sysctls, err := parseSysctls(l.settings.DriverOpts[optSysctls], name)
	if err != nil {
		return err
	}
	if len(sysctls) > 0 {
		err := inNamespace(ns.fd, func() error {
			for _, s := range sysctls {
				if err := writeSysctl(s.path, s.value); err != nil {
					return errdef.Invalid.Errorf("failed to set sysctl %s=%s: %w", s.path, s.value, err)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for _, p := range append(l.prefixes(), l.linkLocal()...) {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() && n.bridge != "" {
			addr.Flags = unix.IFA_F_NODAD // the pool is ours, nobody else has it
		}
		if err := ns.handle.AddrAdd(eth, addr); err != nil {
			return fmt.Errorf("address %s: %w", p, err)
		}
	}
	return ns.handle.LinkSetUp(eth)
}

// linkLocal are the further addresses that were asked for (--link-local-ip).
func (l *leg) linkLocal() (out []netip.Prefix) {
	if l.settings.IPAMConfig == nil {
		return nil
	}
	for _, a := range l.settings.IPAMConfig.LinkLocalIPs {
		bits := 16 // 169.254.0.0/16 (RFC 3927)
		if a.Is6() {
			bits = 64 // fe80::/64 (RFC 4291)
		}
		out = append(out, netip.PrefixFrom(a, bits))
	}
	return out
}

// linkOf is the index of the interface that has an endpoint's address; 0 if
// there is none.
func (ns *namespace) linkOf(l *leg) (int, error) {
	addrs, err := ns.handle.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return 0, err
	}
	for _, a := range addrs {
		p, ok := prefixOf(a.IPNet)
		if ok && (p.Addr() == l.settings.IPAddress || p.Addr() == l.settings.GlobalIPv6Address) {
			return a.LinkIndex, nil
		}
	}
	return 0, nil
}

// unplug removes an endpoint's interface.
func (ns *namespace) unplug(l *leg) error {
	index, err := ns.linkOf(l)
	if err != nil || index == 0 {
		return err
	}
	link, err := ns.handle.LinkByIndex(index)
	if err != nil {
		return err
	}
	return ns.handle.LinkDel(link)
}

// A defaultRoute leads out by a gateway or, without one, by an endpoint's
// interface.
type defaultRoute struct {
	gateway netip.Addr
	by      *leg
}

func (d defaultRoute) valid() bool { return d.gateway.IsValid() || d.by != nil }

// setDefaults makes now the default routes that are not what they were.
func (ns *namespace) setDefaults(was, now exits) error {
	for _, d := range []struct {
		was, now defaultRoute
		dst      string
	}{{was.route4, now.route4, "0.0.0.0/0"}, {was.route6, now.route6, "::/0"}} {
		if d.was == d.now {
			continue
		}
		route := &netlink.Route{Dst: ipNet(netip.MustParsePrefix(d.dst))}
		if !d.now.valid() {
			// It may have gone with its interface.
			if err := ns.handle.RouteDel(route); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("remove default route: %w", err)
			}
			continue
		}
		if d.now.gateway.IsValid() {
			route.Gw = d.now.gateway.AsSlice()
		} else {
			index, err := ns.linkOf(d.now.by)
			if err != nil {
				return err
			}
			route.LinkIndex, route.Scope = index, netlink.SCOPE_LINK
		}
		if err := ns.handle.RouteReplace(route); err != nil {
			return fmt.Errorf("default route by %s: %w", d.now.gateway, err)
		}
	}
	return nil
}
