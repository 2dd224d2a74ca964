package network

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
)

// Join gives a container its interfaces, addresses, routes, names and
// published ports. On an error nothing is left.
func (h *Host) Join(_ context.Context, s Sandbox) (Joined, error) {
	return h.join(s, (*Host).plug)
}

// Rejoin takes up a running container after a restart of the daemon: what is
// there is kept, what is missing (name service, rules, port listeners) is made.
func (h *Host) Rejoin(_ context.Context, s Sandbox) (Joined, error) {
	return h.join(s, nil)
}

// join reserves, plugs cables in if asked to, and opens to the outside.
func (h *Host) join(s Sandbox, plug func(*Host, *namespace, *state, *leg, string) error) (_ Joined, err error) {
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
	if plug != nil {
		if err := ns.loopback(); err != nil {
			return Joined{}, err
		}
		for i, ep := range s.Endpoints {
			n := h.network(ep.Network)
			if n == nil || n.bridge == "" {
				continue
			}
			if err := plug(h, ns, n, m.endpoints[n.ID], "eth"+strconv.Itoa(i)); err != nil {
				return Joined{}, fmt.Errorf("connect to network %s: %w", n.Name, err)
			}
		}
		if err := h.defaultRoutes(ns, m); err != nil {
			return Joined{}, err
		}
	}
	if m.needsResolver(h) {
		if m.resolver, err = h.serveNames(m, ns); err != nil {
			return Joined{}, fmt.Errorf("name service: %w", err)
		}
	}
	if err := h.publish(m); err != nil {
		return Joined{}, err
	}
	return h.joined(m), nil
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

func (h *Host) reserveLeg(m *member, ep Endpoint) error {
	n, ok := h.networks[ep.Network]
	if !ok {
		return errdef.NotFound.Errorf("network %s not found: it was removed since container %s was created; connect the container to another one", ep.Network, m.sandbox.Name)
	}
	set := ep.Settings.Copy()
	if set == nil {
		set = &network.EndpointSettings{}
	}
	set.NetworkID, set.EndpointID = n.ID, endpointID(n.ID, m.sandbox.ContainerID)
	if n.bridge == "" {
		m.endpoints[n.ID] = &leg{settings: set}
		return nil
	}
	if err := h.ensureBridge(n); err != nil {
		return err
	}
	var asked network.EndpointIPAMConfig
	if set.IPAMConfig != nil {
		asked = *set.IPAMConfig
	}
	for _, c := range n.IPAM.Config {
		var err error
		if c.Subnet.Addr().Is4() {
			set.IPAddress, err = n.allocate(c, asked.IPv4Address, set.IPAddress, m.sandbox.Name)
			set.IPPrefixLen, set.Gateway = c.Subnet.Bits(), c.Gateway
		} else {
			set.GlobalIPv6Address, err = n.allocate(c, asked.IPv6Address, set.GlobalIPv6Address, m.sandbox.Name)
			set.GlobalIPv6PrefixLen, set.IPv6Gateway = c.Subnet.Bits(), c.Gateway
		}
		if err != nil {
			return err
		}
	}
	if n.Internal {
		set.Gateway, set.IPv6Gateway = netip.Addr{}, netip.Addr{}
	}
	if len(set.MacAddress) == 0 {
		set.MacAddress = macOf(set.IPAddress)
	}
	m.endpoints[n.ID] = &leg{settings: set, names: namesOf(m.sandbox, n, set)}
	set.DNSNames = m.endpoints[n.ID].names
	return nil
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
// address, so that a neighbour's cache is right after a restart.
func macOf(ip netip.Addr) network.HardwareAddr {
	a := ip.As4()
	return network.HardwareAddr{0x02, 0x42, a[0], a[1], a[2], a[3]}
}

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

func (ns *namespace) loopback() error {
	lo, err := ns.handle.LinkByIndex(1)
	if err != nil {
		return err
	}
	return ns.handle.LinkSetUp(lo)
}

// addrGenNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const addrGenNone = 1

// plug makes the cable: one end on the bridge, the other in the container.
func (h *Host) plug(ns *namespace, n *state, l *leg, name string) error {
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
	err = ns.configure(n, l, name)
	if err == nil {
		// Where br_netfilter turns a published port back on the bridge itself,
		// a container that calls its own must get the packet by the same port.
		err = h.links.LinkSetHairpin(veth, true)
	}
	if err != nil {
		return errors.Join(err, h.links.LinkDel(veth))
	}
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
	for _, p := range l.prefixes() {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			addr.Flags = 2 // IFA_F_NODAD: the pool is ours, nobody else has it
		}
		if err := ns.handle.AddrAdd(eth, addr); err != nil {
			return fmt.Errorf("address %s: %w", p, err)
		}
	}
	return ns.handle.LinkSetUp(eth)
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

// defaultRoutes leads to the outside by the network that comes first in
// priority, then in the order of the sandbox.
func (h *Host) defaultRoutes(ns *namespace, m *member) error {
	order := slices.Clone(m.sandbox.Endpoints)
	slices.SortStableFunc(order, func(a, b Endpoint) int { return priority(b) - priority(a) })
	var v4, v6 bool
	for _, ep := range order {
		l := m.endpoints[ep.Network]
		for _, gw := range []netip.Addr{l.settings.Gateway, l.settings.IPv6Gateway} {
			done := &v4
			if gw.Is6() {
				done = &v6
			}
			if !gw.IsValid() || *done {
				continue
			}
			*done = true
			if err := ns.handle.RouteAdd(&netlink.Route{Gw: gw.AsSlice()}); err != nil {
				return fmt.Errorf("default route by %s: %w", gw, err)
			}
		}
	}
	return nil
}

func priority(ep Endpoint) int {
	if ep.Settings == nil {
		return 0
	}
	return ep.Settings.GwPriority
}

func (h *Host) joined(m *member) Joined {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := Joined{Endpoints: map[string]*network.EndpointSettings{}, Ports: network.PortMap{}, Resolv: resolvConf(m)}
	for id, l := range m.endpoints {
		out.Endpoints[h.networks[id].Name] = l.settings.Copy()
	}
	for _, p := range m.published {
		out.Ports[p.port] = append(out.Ports[p.port], p.bindings()...)
	}
	return out
}

// Leave gives back addresses and ports. The kernel removes interfaces with the
// container's namespace. A container that has not joined is no error.
func (h *Host) Leave(_ context.Context, containerID string) error {
	h.mu.Lock()
	m, ok := h.members[containerID]
	if !ok {
		h.mu.Unlock()
		return nil
	}
	delete(h.members, containerID)
	h.releaseLocked(m)
	h.mu.Unlock()
	err := h.rules.unpublish(m.published)
	return errors.Join(err, m.close())
}

func (h *Host) releaseLocked(m *member) {
	for id, l := range m.endpoints {
		h.releaseLegLocked(h.networks[id], l)
	}
	for _, p := range m.published {
		delete(h.ports, p.key)
	}
}

func (h *Host) releaseLegLocked(n *state, l *leg) {
	if n == nil {
		return
	}
	for _, p := range l.prefixes() {
		delete(n.taken, p.Addr())
	}
}

// Connect adds a running container to another network. The first one with
// names brings its resolver, and resolv is then the new /etc/resolv.conf.
func (h *Host) Connect(_ context.Context, s Sandbox, ep Endpoint) (set *network.EndpointSettings, resolv []byte, err error) {
	h.mu.Lock()
	m, ok := h.members[s.ContainerID]
	if !ok {
		h.mu.Unlock()
		return nil, nil, errdef.Conflict.Errorf("container %s is not running", s.Name)
	}
	if err := h.reserveLeg(m, ep); err != nil {
		h.mu.Unlock()
		return nil, nil, err
	}
	n, l := h.networks[ep.Network], m.endpoints[ep.Network]
	used := len(m.endpoints)
	h.mu.Unlock()
	undo := func(err error) (*network.EndpointSettings, []byte, error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(m.endpoints, n.ID)
		h.releaseLegLocked(n, l)
		return nil, nil, err
	}
	ns, err := openNamespace(s.Pid)
	if err != nil {
		return undo(err)
	}
	defer ns.close()
	if err := h.plug(ns, n, l, ns.freeName(used)); err != nil {
		return undo(fmt.Errorf("connect to network %s: %w", n.Name, err))
	}
	if gw := l.settings.Gateway; gw.IsValid() {
		// The first way out; one that is there stays.
		if err := ns.handle.RouteAdd(&netlink.Route{Gw: gw.AsSlice()}); err != nil && !os.IsExist(err) {
			return undo(err)
		}
	}
	if m.resolver == nil && m.needsResolver(h) {
		r, err := h.serveNames(m, ns)
		if err != nil {
			return undo(fmt.Errorf("name service: %w", err))
		}
		h.mu.Lock()
		m.resolver = r
		resolv = resolvConf(m)
		h.mu.Unlock()
	}
	return l.settings.Copy(), resolv, nil
}

func (ns *namespace) freeName(from int) string {
	for i := from - 1; ; i++ {
		name := "eth" + strconv.Itoa(i)
		if _, err := ns.handle.LinkByName(name); err != nil {
			return name
		}
	}
}

// Disconnect takes a running container from a network.
func (h *Host) Disconnect(_ context.Context, containerID, networkID string) error {
	h.mu.Lock()
	m, ok := h.members[containerID]
	if !ok {
		h.mu.Unlock()
		return nil
	}
	l, ok := m.endpoints[networkID]
	n := h.networks[networkID]
	if ok {
		delete(m.endpoints, networkID)
		h.releaseLegLocked(n, l)
	}
	pid := m.sandbox.Pid
	h.mu.Unlock()
	if !ok || n == nil || n.bridge == "" {
		return nil
	}
	ns, err := openNamespace(pid)
	if err != nil {
		return err
	}
	defer ns.close()
	links, err := ns.handle.LinkList()
	if err != nil {
		return err
	}
	for _, link := range links {
		if link.Attrs().HardwareAddr.String() == l.settings.MacAddress.String() {
			return ns.handle.LinkDel(link)
		}
	}
	return nil
}

// Reconcile removes what belongs to no container that joined or rejoined, and
// to no network.
func (h *Host) Reconcile(context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	known := map[string]bool{}
	for _, n := range h.networks {
		known[n.bridge] = true
	}
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range links {
		if l.Type() == "bridge" && l.Attrs().Alias == h.alias() && !known[l.Attrs().Name] {
			errs = append(errs, netlink.LinkDel(l))
		}
	}
	var live []*publication
	for _, m := range h.members {
		live = append(live, m.published...)
	}
	return errors.Join(append(errs, h.rules.keepOnly(live))...)
}
