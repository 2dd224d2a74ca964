package network

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/order"
)

// Join gives a container its interfaces, addresses, routes, names and
// published ports. On an error nothing is left.
func (h *Host) Join(_ context.Context, s Sandbox) (Joined, error) {
	return h.join(s, true)
}

// Rejoin takes up a running container after a restart of the daemon: what is
// there is kept, what is missing (name service, rules, port listeners) is made.
// The sandbox has the ports as they were published.
func (h *Host) Rejoin(_ context.Context, s Sandbox) (Joined, error) {
	return h.join(s, false)
}

// join reserves, plugs cables in if the container is fresh, and opens to the
// outside.
func (h *Host) join(s Sandbox, fresh bool) (_ Joined, err error) {
	m, err := h.reserve(s)
	if err != nil {
		return Joined{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Leave(context.Background(), s.ContainerID))
		}
	}()
	ns, err := openNamespace(s.Pid)
	if err != nil {
		return Joined{}, err
	}
	defer ns.close()
	exits := h.exitsOf(m)
	if fresh {
		if err := ns.loopback(); err != nil {
			return Joined{}, err
		}
		for _, ep := range inNameOrder(s.Endpoints) {
			n := h.network(ep.Network)
			if n == nil || !n.wired() {
				continue
			}
			if err := h.plug(ns, n, m.endpoints[n.ID]); err != nil {
				return Joined{}, fmt.Errorf("connect to network %s: %w", n.Name, err)
			}
			h.at("network-cable")
		}
		if err := ns.setDefaults(m.exits, exits); err != nil {
			return Joined{}, err
		}
	} else if err := h.findCables(ns, m); err != nil {
		return Joined{}, err
	}
	h.mu.Lock()
	m.exits = exits
	h.mu.Unlock()
	if h.needsResolver(m) {
		if m.resolver, err = h.serveNames(m, ns); err != nil {
			return Joined{}, fmt.Errorf("name service: %w", err)
		}
	}
	if err := h.publish(m, s.Ports, !fresh); err != nil {
		return Joined{}, err
	}
	if fresh {
		h.at("network-published")
	}
	return h.joined(m), nil
}

// inNameOrder has endpoints that name their interface come first, so that no
// other gets that name.
func inNameOrder(in []Endpoint) []Endpoint {
	named := func(ep Endpoint) int {
		if ep.Settings != nil && ep.Settings.DriverOpts[optIfName] != "" {
			return 0
		}
		return 1
	}
	out := slices.Clone(in)
	order.By(out, func(a, b Endpoint) int { return named(a) - named(b) })
	return out
}

func (h *Host) network(id string) *state {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.networks[id]
}

// reserve takes addresses for every endpoint.
func (h *Host) reserve(s Sandbox) (*member, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, joined := h.members[s.ContainerID]; joined {
		return nil, errdef.Conflict.Errorf("container %s is on its networks already", s.Name)
	}
	m := &member{sandbox: s, endpoints: map[string]*leg{}}
	for _, ep := range s.Endpoints {
		if err := h.reserveLeg(m, ep); err != nil {
			h.releaseLocked(m)
			return nil, err
		}
	}
	h.members[s.ContainerID] = m
	return m, nil
}

func (h *Host) reserveLeg(m *member, ep Endpoint) (err error) {
	n, ok := h.networks[ep.Network]
	if !ok {
		return errdef.NotFound.Errorf("network %s not found: it was removed since container %s was created; connect the container to another one", ep.Network, m.sandbox.Name)
	}
	set := ep.Settings.Copy()
	if set == nil {
		set = &network.EndpointSettings{}
	}
	set.NetworkID, set.EndpointID = n.ID, endpointID(n.ID, m.sandbox.ContainerID)
	if !n.wired() {
		m.endpoints[n.ID] = &leg{settings: set}
		return nil
	}
	if err := CheckEndpoint(n.Network, set); err != nil {
		return err
	}
	if err := h.ensure(n); err != nil {
		return err
	}
	var asked network.EndpointIPAMConfig
	if set.IPAMConfig != nil {
		asked = *set.IPAMConfig
	}
	l := &leg{settings: set, names: namesOf(m.sandbox, n, set)}
	defer func() {
		if err != nil {
			h.releaseLegLocked(n, l)
		}
	}()
	had4, had6 := set.IPAddress, set.GlobalIPv6Address
	set.IPAddress, set.IPPrefixLen, set.Gateway = netip.Addr{}, 0, netip.Addr{}
	set.GlobalIPv6Address, set.GlobalIPv6PrefixLen, set.IPv6Gateway = netip.Addr{}, 0, netip.Addr{}
	var c network.IPAMConfig
	if n.EnableIPv4 {
		if set.IPAddress, c, err = n.allocate(false, asked.IPv4Address, had4, m.sandbox.Name); err != nil {
			set.IPAddress = netip.Addr{} // not ours to give back
			return err
		}
		set.IPPrefixLen, set.Gateway = c.Subnet.Bits(), n.leadsBy(c)
	}
	if n.EnableIPv6 {
		if set.GlobalIPv6Address, c, err = n.allocate(true, asked.IPv6Address, had6, m.sandbox.Name); err != nil {
			set.GlobalIPv6Address = netip.Addr{}
			return err
		}
		set.GlobalIPv6PrefixLen, set.IPv6Gateway = c.Subnet.Bits(), n.leadsBy(c)
	}
	if len(set.MacAddress) == 0 && n.Driver != driverIPvlan && !(n.Driver == driverMacvlan && n.options.macvlan == "passthru") {
		set.MacAddress = macOf(set.IPAddress)
	}
	m.endpoints[n.ID] = l
	set.DNSNames = l.names
	return nil
}

// leadsBy is the address by which containers leave the network.
func (n *state) leadsBy(c network.IPAMConfig) netip.Addr {
	if n.Internal || n.routesByDevice() {
		return netip.Addr{}
	}
	return c.Gateway
}

// namesOf are the names by which others on a user-defined network find a
// container: its own, its aliases and its short ID.
func namesOf(s Sandbox, n *state, set *network.EndpointSettings) []string {
	if n.Name == network.NetworkBridge {
		return nil
	}
	out := []string{s.Name}
	for _, a := range append(slices.Clone(set.Aliases), s.ContainerID[:12], s.Hostname) {
		if a != "" && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

func endpointID(networkID, containerID string) string {
	sum := sha256.Sum256([]byte(networkID + containerID))
	return hex.EncodeToString(sum[:])
}

// macOf is the address Docker gives: locally administered, made from the IPv4
// address, so that a neighbour's cache is right after a restart; without one it
// is random.
func macOf(ip netip.Addr) network.HardwareAddr {
	mac := network.HardwareAddr{0x02, 0x42, 0, 0, 0, 0}
	if ip.Is4() {
		a := ip.As4()
		copy(mac[2:], a[:])
	} else {
		rand.Read(mac[2:])
	}
	return mac
}

func (l *leg) prefixes() (out []netip.Prefix) {
	if s := l.settings; s.IPAddress.IsValid() {
		out = append(out, netip.PrefixFrom(s.IPAddress, s.IPPrefixLen))
	}
	if s := l.settings; s.GlobalIPv6Address.IsValid() {
		out = append(out, netip.PrefixFrom(s.GlobalIPv6Address, s.GlobalIPv6PrefixLen))
	}
	return out
}

// exits are the ways from a container to the outside, and in again.
type exits struct {
	route4, route6 defaultRoute
	in4, in6       *state // networks whose host has the published ports; nil for none
	to4, to6       netip.Addr
}

// exitsOf finds them: by the network of the highest priority, and of those by
// the first in the order of names, as in Docker.
func (h *Host) exitsOf(m *member) (x exits) {
	h.mu.Lock()
	defer h.mu.Unlock()
	ranked := make([]*state, 0, len(m.endpoints))
	for id := range m.endpoints {
		if n := h.networks[id]; n != nil && n.outside() {
			ranked = append(ranked, n)
		}
	}
	order.By(ranked, func(a, b *state) int {
		return cmp.Or(m.endpoints[b.ID].settings.GwPriority-m.endpoints[a.ID].settings.GwPriority, cmp.Compare(a.Name, b.Name))
	})
	for _, n := range ranked {
		l := m.endpoints[n.ID]
		for _, f := range []struct {
			route         *defaultRoute
			in            **state
			to            *netip.Addr
			gateway, addr netip.Addr
		}{
			{&x.route4, &x.in4, &x.to4, l.settings.Gateway, l.settings.IPAddress},
			{&x.route6, &x.in6, &x.to6, l.settings.IPv6Gateway, l.settings.GlobalIPv6Address},
		} {
			if !f.addr.IsValid() {
				continue
			}
			switch {
			case f.route.valid():
			case f.gateway.IsValid():
				f.route.gateway = f.gateway
			case n.routesByDevice():
				f.route.by = l
			}
			if *f.in == nil && n.bridge != "" {
				*f.in, *f.to = n, f.addr
			}
		}
	}
	return x
}

func (h *Host) joined(m *member) Joined {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := Joined{Endpoints: map[string]*network.EndpointSettings{}, Ports: m.ports(), Resolv: resolvConf(m)}
	for id, l := range m.endpoints {
		if n := h.networks[id]; n != nil {
			out.Endpoints[n.Name] = l.settings.Copy()
		}
	}
	return out
}

// Leave gives back addresses and ports. The kernel removes interfaces with the
// container's namespace. A container that has not joined is no error.
func (h *Host) Leave(_ context.Context, containerID string) error {
	h.mu.Lock()
	m, ok := h.members[containerID]
	h.mu.Unlock()
	if !ok {
		return nil
	}
	// Addresses are given back last, so that no port leads to the next owner.
	err := h.unpublish(m)
	if m.resolver != nil {
		m.resolver.close()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.members, containerID)
	h.releaseLocked(m)
	return err
}

func (h *Host) releaseLocked(m *member) {
	for id, l := range m.endpoints {
		h.releaseLegLocked(h.networks[id], l)
	}
}

func (h *Host) releaseLegLocked(n *state, l *leg) {
	if n == nil {
		return
	}
	if l.cable != 0 {
		if err := h.cut(l.cable); err != nil {
			h.log.Warn("the cable of a container that ended is still on its bridge", "network", n.Name, "error", err)
		}
	}
	for _, p := range l.prefixes() {
		delete(n.taken, p.Addr())
	}
}

// Reconcile removes what belongs to no container that joined or rejoined, and
// to no network.
func (h *Host) Reconcile(context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	known, cables := map[string]bool{}, map[int]bool{}
	for _, n := range h.networks {
		if n.wired() {
			known[cmp.Or(n.bridge, n.parent())] = true
		}
	}
	for _, m := range h.members {
		for _, l := range m.endpoints {
			cables[l.cable] = true
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range links {
		if a := l.Attrs(); a.Alias == h.alias() && !known[a.Name] && !cables[a.Index] {
			if err := netlink.LinkDel(l); !errors.Is(err, syscall.ENODEV) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(append(errs, h.rules.settle())...)
}
