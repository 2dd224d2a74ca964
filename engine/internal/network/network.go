// Package network connects containers to networks and to the outside.
//
// A network is a record and, for the bridge driver, a bridge interface. A
// container that joins gets a veth pair for each network, an address, routes,
// names that others on the network resolve, and published ports. All of it is
// done by netlink; packet rules are in tables of our own (rules.go), static but
// for sets and maps, so that one container changes a few elements.
//
// What a crash leaves: interfaces vanish with the container's namespace, which
// the kernel removes with its last process. Bridges, rules and map elements
// stay; Rejoin takes up what belongs to running containers and Reconcile
// removes the rest. Nothing that was not made here is ever changed or removed:
// bridges of ours carry an alias that says so, and an existing bridge that a flag
// names is only used.
//
// Which addresses and ports are taken is known in memory and rebuilt by Rejoin.
// Methods may be called from many goroutines.
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/order"
)

// Options say what the host's networks look like. The zero value works.
type Options struct {
	Bridge string       // of the network "bridge"; default minke0. An existing one is used, but never changed or removed
	BIP    netip.Prefix // address of that bridge
	Logger *slog.Logger

	FixedCIDR   netip.Prefix // the part of its subnet that containers get addresses of
	IPv6        bool         // it has IPv6, too
	FixedCIDRv6 netip.Prefix // and this subnet; the zero value for a unique local one
	MTU         int          // of its interfaces; 0 for the kernel's default
	NoICC       bool         // its containers do not reach each other
	BindIP      netip.Addr   // where its ports are published that name no address; the zero value for everywhere
	Pools       []Pool       // for networks that name no subnet; nil for Docker's

	// FaultPoint, if set, is called at each step of a network's life, for tests
	// that end the process there.
	FaultPoint func(name string)
}

// A Sandbox is what a container wants of its network namespace.
type Sandbox struct {
	ContainerID string
	Name        string // container's name, an alias on user-defined networks
	Hostname    string
	Pid         int // a process in the network namespace
	Endpoints   []Endpoint
	Ports       network.PortMap // wanted; host port "" or "0" means any
	DNS         DNS
}

// DNS is what the container wants in place of the host's settings.
type DNS struct {
	Servers []netip.Addr
	Search  []string
	Options []string
}

// An Endpoint is one leg of a container. Settings that come from an earlier
// start (addresses) are used again where they are free.
type Endpoint struct {
	Network  string // ID
	Settings *network.EndpointSettings
}

// Joined is what a container got.
type Joined struct {
	Endpoints map[string]*network.EndpointSettings // by network name, complete
	Ports     network.PortMap                      // as published
	Resolv    []byte                               // content of /etc/resolv.conf
}

// Host is the container networking of this machine.
type Host struct {
	db     *bbolt.DB
	log    *slog.Logger
	o      Options
	bridge string // of the default network
	pools  []Pool
	rules  *rules
	watch  *watch
	links  *netlink.Handle // a socket kept open; for one-off questions there is package netlink's own

	mu       sync.Mutex
	networks map[string]*state  // by ID
	members  map[string]*member // by container ID
	ports    map[portKey]string // taken, to container name
}

// state is a network with what is taken of it.
type state struct {
	network.Network
	options options
	bridge  string // interface name, "" if it is not of this driver
	ready   int    // index of the bridge or parent that was found complete, with its rules
	taken   map[netip.Addr]string
}

// wired reports whether containers get an interface.
func (n *state) wired() bool {
	return !n.ConfigOnly && (n.Driver == driverBridge || n.Driver == driverMacvlan || n.Driver == driverIPvlan)
}

// outside reports whether the network leads anywhere.
func (n *state) outside() bool { return n.wired() && !n.Internal }

const (
	driverBridge  = "bridge"
	driverMacvlan = "macvlan"
	driverIPvlan  = "ipvlan"
)

// member is a container that has joined.
type member struct {
	sandbox   Sandbox
	endpoints map[string]*leg // by network ID
	published []*publication
	exits     exits
	resolver  *resolver // nil on the default network alone
}

// leg is one endpoint of a member.
type leg struct {
	settings *network.EndpointSettings
	names    []string // what others on the network call it
	cable    int      // index of the host's end, on a bridge; 0 if there is none
}

// Open reads the networks from db and makes the predefined ones.
func Open(ctx context.Context, db *bbolt.DB, o Options) (*Host, error) {
	h := &Host{
		db: db, log: o.Logger, o: o, bridge: o.Bridge, pools: o.Pools,
		networks: map[string]*state{}, members: map[string]*member{}, ports: map[portKey]string{},
	}
	if h.bridge == "" {
		h.bridge = "minke0"
	}
	if h.pools == nil {
		h.pools = defaultPools
	}
	if err := h.load(); err != nil {
		return nil, err
	}
	var err error
	if h.links, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("network interfaces: %w", err)
	}
	if err := h.predefine(); err != nil {
		h.links.Close()
		return nil, err
	}
	if h.rules, err = openRules(h.bridge); err != nil {
		h.links.Close()
		return nil, fmt.Errorf("packet rules: %w", err)
	}
	var elements []element
	for _, n := range h.networks {
		if n.bridge != "" {
			elements = append(elements, h.rules.elementsOf(n)...)
		}
	}
	if err := h.rules.start(elements); err != nil {
		return nil, errors.Join(fmt.Errorf("packet rules: %w", err), h.Close())
	}
	for _, n := range h.networks {
		// Made again after a reboot, at once or when first used.
		if n.wired() && n.bridge != h.bridge {
			if err := h.ensure(n); err != nil {
				h.log.Error("network is not usable", "network", n.Name, "err", err)
			}
		}
	}
	if h.watch, err = watchRules(h); err != nil {
		h.log.Warn("changes of packet rules by others will not be noticed", "err", err)
	}
	return h, nil
}

// Close stops name service and port listeners. Networks stay.
func (h *Host) Close() error {
	if h.watch != nil {
		h.watch.close()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, m := range h.members {
		errs = append(errs, m.close())
	}
	if h.rules != nil {
		errs = append(errs, h.rules.close())
		h.links.Close()
	}
	return errors.Join(errs...)
}

func (m *member) close() error {
	var errs []error
	for _, p := range m.published {
		errs = append(errs, p.close())
	}
	if m.resolver != nil {
		m.resolver.close()
	}
	return errors.Join(errs...)
}

// at is a place where the process may die.
func (h *Host) at(name string) {
	if h.o.FaultPoint != nil {
		h.o.FaultPoint(name)
	}
}

// Cleanup removes bridges and tables of ours. Nothing may be joined.
func (h *Host) Cleanup(context.Context) error {
	if h.watch != nil {
		h.watch.close()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.members) > 0 {
		return errdef.Conflict.Errorf("%d containers are still on networks", len(h.members))
	}
	var errs []error
	for _, n := range h.networks {
		errs = append(errs, h.removeInterface(n))
	}
	return errors.Join(append(errs, h.rules.remove())...)
}

// Networks lists all, by name.
func (h *Host) Networks() []network.Network {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]network.Network, 0, len(h.networks))
	for _, n := range h.networks {
		out = append(out, n.shown())
	}
	order.By(out, func(a, b network.Network) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// shown is a network as clients want it: a list of pools, not null, even for
// the host's.
func (s *state) shown() network.Network {
	n := s.Network
	if n.IPAM.Config == nil {
		n.IPAM.Config = []network.IPAMConfig{}
	}
	return n
}

// Find takes an ID, name or unique ID prefix, in this order.
func (h *Host) Find(name string) (network.Network, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if name == network.NetworkDefault {
		name = network.NetworkBridge
	}
	if n, ok := h.networks[name]; ok {
		return n.shown(), nil
	}
	var found []*state
	for id, n := range h.networks {
		if n.Name == name {
			return n.shown(), nil
		}
		if name != "" && strings.HasPrefix(id, name) {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 1:
		return found[0].shown(), nil
	case 0:
		return network.Network{}, errdef.NotFound.Errorf("network %s not found", name)
	}
	return network.Network{}, errdef.Invalid.Errorf("network %s is ambiguous (%d matches found on ID prefix)", name, len(found))
}

// Members lists who has joined a network, by container ID.
func (h *Host) Members(id string) map[string]network.EndpointResource {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := map[string]network.EndpointResource{}
	for cid, m := range h.members {
		l, ok := m.endpoints[id]
		if !ok {
			continue
		}
		r := network.EndpointResource{Name: m.sandbox.Name, EndpointID: l.settings.EndpointID, MacAddress: l.settings.MacAddress}
		if l.settings.IPAddress.IsValid() {
			r.IPv4Address = netip.PrefixFrom(l.settings.IPAddress, l.settings.IPPrefixLen)
		}
		if l.settings.GlobalIPv6Address.IsValid() {
			r.IPv6Address = netip.PrefixFrom(l.settings.GlobalIPv6Address, l.settings.GlobalIPv6PrefixLen)
		}
		out[cid] = r
	}
	return out
}

func writeSysctl(path, value string) error {
	old, err := os.ReadFile("/proc/sys/" + path)
	if err == nil && strings.TrimSpace(string(old)) == value {
		return nil
	}
	return os.WriteFile("/proc/sys/"+path, []byte(value), 0o644)
}
