package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"github.com/vishvananda/netlink"

	"github.com/minke-os/minke/internal/errdef"
)

// alias marks the bridges that were made here: only those are changed and
// removed. It names the default bridge, which tells two daemons on one host
// apart.
func (h *Host) alias() string { return "minke " + h.bridge }

// ensureBridge makes a network's bridge and rules if they are not there.
// Called with h.mu held.
func (h *Host) ensureBridge(n *state) error {
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
	}
	if link.Attrs().Alias == h.alias() {
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
	}
	if err := h.rules.addNetwork(n); err != nil {
		return err
	}
	n.ready = link.Attrs().Index
	return nil
}

func (h *Host) makeBridge(n *state) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = n.bridge
	if mtu, err := strconv.Atoi(n.Options["com.docker.network.driver.mtu"]); err == nil {
		attrs.MTU = mtu
	}
	link := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(link); err != nil {
		return nil, err
	}
	made := func() error {
		if err := netlink.LinkSetAlias(link, h.alias()); err != nil {
			return err
		}
		for _, c := range n.IPAM.Config {
			addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(c.Gateway, c.Subnet.Bits()))}
			if err := netlink.AddrAdd(link, addr); err != nil && !errors.Is(err, syscall.EEXIST) {
				return fmt.Errorf("address %s: %w", c.Gateway, err)
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		// So that ports published on 127.0.0.1 reach containers; the rules
		// keep containers from the host's loopback addresses.
		if err := writeSysctl("net/ipv4/conf/"+n.bridge+"/route_localnet", "1"); err != nil {
			return err
		}
		return writeSysctl("net/ipv4/ip_forward", "1")
	}
	if err := made(); err != nil {
		netlink.LinkDel(link)
		return nil, err
	}
	return link, nil
}

// removeBridge deletes a bridge that was made here.
func (h *Host) removeBridge(name string) error {
	link, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err != nil || link.Attrs().Alias != h.alias() {
		return err
	}
	return netlink.LinkDel(link)
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
