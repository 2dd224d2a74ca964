package network

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/network"

	"github.com/minke-os/minke/internal/errdef"
)

// pools4 are the subnets given to networks that name none, Docker's, in order.
var pools4 = func() (out []netip.Prefix) {
	for b := byte(17); b <= 31; b++ {
		out = append(out, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, b, 0, 0}), 16))
	}
	for b := 0; b < 256; b += 16 {
		out = append(out, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(b), 0}), 20))
	}
	return out
}()

// pools6 is one unique local subnet (RFC 4193) made from a network's ID.
func pools6(id string) []netip.Prefix {
	var a [16]byte
	a[0] = 0xfd
	copy(a[1:8], id)
	return []netip.Prefix{netip.PrefixFrom(netip.AddrFrom16(a), 64)}
}

// overlaps names a network that has addresses of p.
func (h *Host) overlaps(p netip.Prefix) string {
	for _, n := range h.networks {
		for _, c := range n.IPAM.Config {
			if c.Subnet.IsValid() && c.Subnet.Overlaps(p) {
				return n.Name
			}
		}
	}
	return ""
}

// freePool is the first pool that neither a network nor an interface of the
// host uses.
func (h *Host) freePool(pools []netip.Prefix) (netip.Prefix, error) {
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
	for _, p := range pools {
		if h.overlaps(p) == "" && !slices.ContainsFunc(host, p.Overlaps) {
			return p, nil
		}
	}
	return netip.Prefix{}, errdef.Unavailable.Errorf("could not find an available, non-overlapping address pool for the network; remove unused networks with docker network prune or name a --subnet")
}

// gateway is the network's first gateway.
func (n *state) gateway() netip.Addr {
	for _, c := range n.IPAM.Config {
		if c.Gateway.Is4() {
			return c.Gateway
		}
	}
	return netip.Addr{}
}

// allocate takes an address of a pool for a container: the one asked for, the
// one it had if that is free, or the next.
func (n *state) allocate(c network.IPAMConfig, asked, had netip.Addr, owner string) (netip.Addr, error) {
	if asked.IsValid() {
		if !c.Subnet.Contains(asked) {
			return netip.Addr{}, errdef.Invalid.Errorf("invalid address %s: it does not belong to any of this network's subnets", asked)
		}
		if user, used := n.taken[asked]; used && user != owner {
			return netip.Addr{}, errdef.Conflict.Errorf("Address already in use: %s (by %s)", asked, user)
		}
		n.taken[asked] = owner
		return asked, nil
	}
	if user, used := n.taken[had]; had.IsValid() && c.Subnet.Contains(had) && (!used || user == owner) {
		n.taken[had] = owner
		return had, nil
	}
	from := c.Subnet
	if c.IPRange.IsValid() {
		from = c.IPRange
	}
	broadcast := lastOf(c.Subnet)
	for a := from.Addr(); from.Contains(a); a = a.Next() {
		if _, used := n.taken[a]; used || a == c.Subnet.Addr() || a == broadcast {
			continue
		}
		n.taken[a] = owner
		return a, nil
	}
	return netip.Addr{}, errdef.Unavailable.Errorf("no available IPv4 addresses on this network's address pools: %s (%s); remove containers or use a larger --subnet", n.Name, from)
}

// lastOf is the broadcast address of an IPv4 subnet; other subnets have none.
func lastOf(p netip.Prefix) netip.Addr {
	if !p.Addr().Is4() {
		return netip.Addr{}
	}
	a := p.Addr().As4()
	n := binary.BigEndian.Uint32(a[:]) | (1<<(32-p.Bits()) - 1)
	binary.BigEndian.PutUint32(a[:], n)
	return netip.AddrFrom4(a)
}
