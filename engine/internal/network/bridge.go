package network

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
)

// alias marks the interfaces that were made here: only those are changed and
// removed. It names the default bridge, which tells two daemons on one host
// apart.
func (h *Host) alias() string { return "minke " + h.bridge }

// ensure makes what a network needs of the host if it is not there: its bridge
// or parent interface, its rules. Called with h.mu held.
func (h *Host) ensure(n *state) error {
	if n.bridge == "" {
		return h.ensureParent(n)
	}
	link, err := h.links.LinkByName(n.bridge)
	var missing netlink.LinkNotFoundError
	switch {
	case err == nil && link.Attrs().Index == n.ready && link.Attrs().Flags&net.FlagUp != 0:
		return nil
	case errors.As(err, &missing):
		if link, err = h.makeBridge(n); err != nil {
			return fmt.Errorf("make bridge %s: %w", n.bridge, err)
		}
	case err != nil:
		return err
	case link.Type() != "bridge":
		return errdef.Conflict.Errorf("interface %s exists and is no bridge; choose another name", n.bridge)
	case link.Attrs().Alias == h.alias():
		if err := h.setUpBridge(n, link); err != nil {
			return fmt.Errorf("set up bridge %s: %w", n.bridge, err)
		}
	}
	if err := h.rules.change(nil, h.rules.elementsOf(n)); err != nil {
		return err
	}
	n.ready = link.Attrs().Index
	return nil
}

// makeBridge makes it under a name of its own, for a bridge without its mark
// would be taken for somebody else's.
func (h *Host) makeBridge(n *state) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "mk" + n.ID[:12]
	if n.options.mtu > 0 {
		attrs.MTU = n.options.mtu
	}
	link := &netlink.Bridge{LinkAttrs: attrs}
	err := h.links.LinkAdd(link)
	if errors.Is(err, syscall.EEXIST) { // left of a crash
		if err = h.links.LinkDel(link); err == nil {
			err = h.links.LinkAdd(link)
		}
	}
	if err != nil {
		return nil, err
	}
	h.at("network-bridge")
	if err = h.links.LinkSetAlias(link, h.alias()); err == nil {
		err = h.links.LinkSetName(link, n.bridge)
	}
	h.at("network-bridge-named")
	if err == nil {
		err = h.setUpBridge(n, link)
	}
	if err != nil {
		return nil, errors.Join(err, h.links.LinkDel(link))
	}
	return link, nil
}

// setUpBridge gives a bridge of ours its addresses and settings.
func (h *Host) setUpBridge(n *state, link netlink.Link) error {
	conf := func(family, name string) string { return "net/" + family + "/conf/" + n.bridge + "/" + name }
	if n.EnableIPv6 {
		// A host may have switched it off for new interfaces.
		if err := writeSysctl(conf("ipv6", "disable_ipv6"), "0"); err != nil {
			return errdef.Unavailable.Errorf("this host has no IPv6: %w", err)
		}
	}
	// Containers do not get to tell the host its routes.
	if err := writeSysctl(conf("ipv6", "accept_ra"), "0"); err != nil && !os.IsNotExist(err) {
		return err
	}
	if n.EnableIPv6 {
		// Its link-local address is made from a hardware address that nobody
		// else has; looking for another owner would take the first second of
		// each container's traffic.
		if err := writeSysctl(conf("ipv6", "accept_dad"), "0"); err != nil {
			return err
		}
	}
	for _, c := range n.IPAM.Config {
		if !h.hostHasAddress(n, c.Gateway) {
			continue
		}
		addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(c.Gateway, c.Subnet.Bits()))}
		if c.Gateway.Is6() {
			addr.Flags = unix.IFA_F_NODAD // the pool is ours, nobody else has it
		}
		if err := h.links.AddrAdd(link, addr); err != nil && !errors.Is(err, syscall.EEXIST) {
			return fmt.Errorf("address %s: %w", c.Gateway, err)
		}
	}
	// A bridge without an address of its own takes the lowest of its ports: with
	// every container that came or went the others would send to one that is
	// no more, until they ask again.
	if err := h.links.LinkSetHardwareAddr(link, bridgeMAC(n.ID)); err != nil {
		return fmt.Errorf("hardware address: %w", err)
	}
	if !n.options.icc && bridgesAreFiltered() {
		if err := filterBridge(link); err != nil {
			return fmt.Errorf("filter between ports: %w", err)
		}
	}
	if err := h.links.LinkSetUp(link); err != nil {
		return err
	}
	// So that ports published on 127.0.0.1 reach containers; the rules
	// keep containers from the host's loopback addresses.
	if err := writeSysctl(conf("ipv4", "route_localnet"), "1"); err != nil {
		return err
	}
	if err := writeSysctl("net/ipv4/ip_forward", "1"); err != nil {
		return err
	}
	if !n.EnableIPv6 {
		return nil
	}
	return forwardIPv6()
}

// bridgeMAC is a locally administered address made from the network's ID, so that
// it is the same after a restart of the host.
func bridgeMAC(id string) net.HardwareAddr {
	sum := sha256.Sum256([]byte("bridge " + id))
	return append(net.HardwareAddr{0x02}, sum[:5]...)
}

// hostHasAddress reports whether the bridge gets the network's gateway address.
func (h *Host) hostHasAddress(n *state, gateway netip.Addr) bool {
	return gateway.IsValid() && n.options.mode(gateway) != modeIsolated && !(gateway.Is4() && n.options.inhibit4)
}

// forwardIPv6 makes the host a router. One that has its own routes by router
// advertisements keeps them: accept_ra 2 says so to the kernel.
func forwardIPv6() error {
	now, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/forwarding")
	if err != nil || strings.TrimSpace(string(now)) == "1" {
		return err
	}
	settings, _ := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	for _, path := range settings {
		if v, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(v)) == "1" {
			os.WriteFile(path, []byte("2"), 0o644) // an interface that has just gone needs it no more
		}
	}
	return writeSysctl("net/ipv6/conf/all/forwarding", "1")
}

// removeUnused deletes a bridge of ours without ports.
func (h *Host) removeUnused(n *state) error {
	bridge, err := h.links.LinkByName(n.bridge)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return err
	}
	links, err := h.links.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Attrs().MasterIndex == bridge.Attrs().Index {
			return nil
		}
	}
	return h.removeInterface(n)
}

// removeInterface deletes what was made for a network, and nothing else.
func (h *Host) removeInterface(n *state) error {
	name := n.bridge
	if name == "" {
		name = n.parent()
	}
	if !n.wired() {
		return nil
	}
	link, err := h.links.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err != nil || link.Attrs().Alias != h.alias() {
		return err
	}
	return h.links.LinkDel(link)
}

// bridgeAddress is the address of an existing bridge.
func bridgeAddress(name string) (netip.Prefix, bool) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return netip.Prefix{}, false
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil || len(addrs) == 0 {
		return netip.Prefix{}, false
	}
	return prefixOf(addrs[0].IPNet)
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones), true
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
