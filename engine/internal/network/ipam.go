package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/network"

	"github.com/minke-os/minke/internal/errdef"
)

// A Pool is a range of addresses from which networks that name no subnet get
// one of Size bits.
type Pool struct {
	Base netip.Prefix
	Size int
}

// defaultPools are Docker's.
var defaultPools = []Pool{{netip.MustParsePrefix("172.16.0.0/12"), 16}, {netip.MustParsePrefix("192.168.0.0/16"), 20}}

// Check says what is wrong with the options.
func (o *Options) Check() error {
	switch {
	case o.Bridge != "" && !validIfName(o.Bridge):
		return fmt.Errorf("invalid bridge name %q: want up to 15 letters, digits, - and _", o.Bridge)
	case o.BIP.IsValid() && (!o.BIP.Addr().Is4() || o.BIP.Addr() == o.BIP.Masked().Addr()):
		return fmt.Errorf("invalid --bip %s: want the bridge's own IPv4 address with its bits, as 172.17.0.1/16", o.BIP)
	case o.FixedCIDR.IsValid() && (!o.FixedCIDR.Addr().Is4() || o.BIP.IsValid() && (!o.BIP.Overlaps(o.FixedCIDR) || o.FixedCIDR.Bits() < o.BIP.Bits())):
		return fmt.Errorf("invalid --fixed-cidr %s: want a part of the bridge's IPv4 subnet", o.FixedCIDR)
	case o.FixedCIDRv6.IsValid() && (!o.FixedCIDRv6.Addr().Is6() || o.FixedCIDRv6.Masked() != o.FixedCIDRv6 || o.FixedCIDRv6.Bits() > 126):
		return fmt.Errorf("invalid --fixed-cidr-v6 %s: want an IPv6 subnet, as 2001:db8:1::/64", o.FixedCIDRv6)
	case o.FixedCIDRv6.IsValid() && !o.IPv6:
		return errors.New("--fixed-cidr-v6 needs --ipv6")
	case o.MTU != 0 && (o.MTU < 68 || o.MTU > 65535):
		return fmt.Errorf("invalid --mtu %d: want a number from 68 to 65535", o.MTU)
	}
	for i, p := range o.Pools {
		switch {
		case !p.Base.IsValid() || p.Base.Masked() != p.Base:
			return fmt.Errorf("invalid default address pool %s: the base must be a network, as 10.0.0.0/8", p.Base)
		case p.Size < p.Base.Bits() || p.Base.Addr().Is4() && p.Size > 30 || p.Size > 120:
			return fmt.Errorf("invalid size %d of default address pool %s: want the number of bits of each subnet, from the base's to 30 (IPv6: 120)", p.Size, p.Base)
		}
		for _, other := range o.Pools[:i] {
			if other.Base.Overlaps(p.Base) {
				return fmt.Errorf("invalid default address pools: %s and %s overlap", other.Base, p.Base)
			}
		}
	}
	return nil
}

// overlaps names a network that has addresses of p.
func (h *Host) overlaps(p netip.Prefix, but string) string {
	for _, n := range h.networks {
		for _, c := range n.IPAM.Config {
			if n.ID != but && !n.ConfigOnly && c.Subnet.IsValid() && c.Subnet.Overlaps(p) {
				return n.Name
			}
		}
	}
	return ""
}

// freePool is the first subnet of a pool that neither a network nor an
// interface of the host uses, of IPv6 or not.
func (h *Host) freePool(v6 bool, id string) (netip.Prefix, error) {
	var host []netip.Prefix
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			host = append(host, p.Masked())
		}
	}
	found := false
	for _, pool := range h.pools {
		if pool.Base.Addr().Is6() != v6 {
			continue
		}
		found = true
		for p := netip.PrefixFrom(pool.Base.Addr(), pool.Size); pool.Base.Contains(p.Addr()); p = netip.PrefixFrom(lastOf(p).Next(), pool.Size) {
			// Docker leaves 172.16.0.0/16 to others.
			if p.String() != "172.16.0.0/16" && h.overlaps(p, id) == "" && !slices.ContainsFunc(host, p.Overlaps) {
				return p, nil
			}
		}
	}
	if v6 && !found {
		// A unique local subnet (RFC 4193) made from the network's ID.
		a := [16]byte{0xfd}
		copy(a[1:8], id)
		if p := netip.PrefixFrom(netip.AddrFrom16(a), 64); h.overlaps(p, id) == "" && !slices.ContainsFunc(host, p.Overlaps) {
			return p, nil
		}
	}
	return netip.Prefix{}, errdef.Invalid.Errorf("all predefined address pools have been fully subnetted: could not find an available, non-overlapping address pool for the network; remove unused networks with docker network prune or name a --subnet")
}

// gateway is the network's first gateway of a family.
func (n *state) gateway(v6 bool) netip.Addr {
	for _, c := range n.IPAM.Config {
		if c.Gateway.IsValid() && c.Gateway.Is6() == v6 {
			return c.Gateway
		}
	}
	return netip.Addr{}
}

// allocate takes an address of a family for a container: the one asked for, the
// one it had if that is free, or the next of a pool.
func (n *state) allocate(v6 bool, asked, had netip.Addr, owner string) (netip.Addr, network.IPAMConfig, error) {
	var c network.IPAMConfig
	free := func(a netip.Addr) bool { user, used := n.taken[a]; return !used || user == owner }
	for i, want := range []netip.Addr{asked, had} {
		wasAsked := i == 0
		if !want.IsValid() {
			continue
		}
		in := slices.IndexFunc(n.IPAM.Config, func(c network.IPAMConfig) bool { return c.Subnet.Contains(want) })
		switch {
		case in >= 0 && free(want):
			n.taken[want] = owner
			return want, n.IPAM.Config[in], nil
		case !wasAsked:
		case in < 0:
			return asked, c, errdef.Invalid.Errorf("invalid address %s: it does not belong to any of this network's subnets", asked)
		default:
			return asked, c, errdef.Forbidden.Errorf("Address already in use: %s (by %s)", asked, n.taken[asked])
		}
	}
	for _, c = range n.IPAM.Config {
		if c.Subnet.Addr().Is6() != v6 {
			continue
		}
		if a := n.nextFree(c); a.IsValid() {
			n.taken[a] = owner
			return a, c, nil
		}
	}
	return netip.Addr{}, c, errdef.Unavailable.Errorf("no available addresses on this network's address pools: %s (%s); remove containers or use a larger --subnet", n.Name, n.ID)
}

// nextFree is the lowest free address of a pool; the zero Addr if there is none.
func (n *state) nextFree(c network.IPAMConfig) netip.Addr {
	from := c.Subnet
	if c.IPRange.IsValid() {
		from = c.IPRange
	}
	broadcast := netip.Addr{}
	if c.Subnet.Addr().Is4() {
		broadcast = lastOf(c.Subnet)
	}
	for a := from.Masked().Addr(); from.Contains(a); a = a.Next() {
		if _, used := n.taken[a]; used || a == c.Subnet.Addr() || a == broadcast {
			continue
		}
		return a
	}
	return netip.Addr{}
}

// lastOf is the highest address of a subnet, for IPv4 its broadcast address.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
