package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/network"
	"go.etcd.io/bbolt"

	"github.com/minke-os/minke/internal/errdef"
)

var bucket = []byte("networks.1") // ID to network.Network, JSON

func (h *Host) load() error {
	return h.db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(bucket)
		if err != nil {
			return err
		}
		return b.ForEach(func(k, data []byte) error {
			var n network.Network
			if err := json.Unmarshal(data, &n); err != nil || n.ID != string(k) {
				h.log.Error("damaged network record is left out", "network", string(k), "err", err)
				return nil
			}
			s, err := newState(n)
			if err != nil {
				h.log.Error("network record with options that this version does not understand", "network", n.Name, "err", err)
			}
			h.networks[n.ID] = s
			return nil
		})
	})
}

func (h *Host) save(n *network.Network) error {
	data, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return h.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Put([]byte(n.ID), data) })
}

func newState(n network.Network) (*state, error) {
	s := &state{Network: n, taken: map[netip.Addr]string{}}
	var err error
	s.options, err = parseOptions(&n)
	if n.Driver == driverBridge && !n.ConfigOnly {
		if s.bridge = n.Options[optBridgeName]; s.bridge == "" {
			s.bridge = "br-" + n.ID[:12]
		}
	}
	for _, c := range n.IPAM.Config {
		if c.Gateway.IsValid() {
			s.taken[c.Gateway] = "gateway"
		}
		for name, a := range c.AuxAddress {
			s.taken[a] = name
		}
	}
	return s, err
}

// predefine makes the networks bridge, host and none, which always exist. That
// of the default bridge follows the flags, which may have changed since.
func (h *Host) predefine() error {
	have := map[string]*state{}
	for _, n := range h.networks {
		if isPredefined(n.Name) {
			have[n.Name] = n
		}
	}
	for name, driver := range map[string]string{network.NetworkHost: "host", network.NetworkNone: "null", network.NetworkBridge: driverBridge} {
		old := have[name]
		if old != nil && driver != driverBridge {
			continue
		}
		req := network.CreateRequest{Name: name, Driver: driver}
		if driver == driverBridge {
			req = h.defaultBridge()
		}
		n, err := h.describe(req, old)
		if err != nil {
			return err
		}
		if old != nil && reflect.DeepEqual(n.IPAM, old.IPAM) && maps.Equal(n.Options, old.Options) && n.EnableIPv6 == old.EnableIPv6 {
			continue
		}
		if old != nil {
			// Made anew, unless containers are on it: then what they have stays.
			if err := h.removeUnused(old); err != nil {
				return err
			}
		}
		if err := h.save(&n); err != nil {
			return err
		}
		if h.networks[n.ID], err = newState(n); err != nil {
			return err
		}
	}
	return nil
}

// defaultBridge is what the flags say of the network "bridge".
func (h *Host) defaultBridge() network.CreateRequest {
	r := network.CreateRequest{Name: network.NetworkBridge, Driver: driverBridge, EnableIPv6: &h.o.IPv6, Options: map[string]string{
		optDefault: "true", optICC: strconv.FormatBool(!h.o.NoICC), optMasquerade: "true",
		optBindIPv4: "0.0.0.0", optBridgeName: h.bridge, optMTU: "1500",
	}}
	if h.o.BindIP.IsValid() {
		r.Options[optBindIPv4] = h.o.BindIP.String()
	}
	if h.o.MTU > 0 {
		r.Options[optMTU] = strconv.Itoa(h.o.MTU)
	}
	p := h.o.BIP
	if existing, ok := bridgeAddress(h.bridge); ok && !p.IsValid() {
		p = existing
	}
	r.IPAM = &network.IPAM{}
	switch {
	case p.IsValid():
		r.IPAM.Config = []network.IPAMConfig{{Subnet: p.Masked(), Gateway: p.Addr(), IPRange: h.o.FixedCIDR}}
	case h.o.FixedCIDR.IsValid():
		r.IPAM.Config = []network.IPAMConfig{{Subnet: h.o.FixedCIDR}}
	}
	if h.o.IPv6 && h.o.FixedCIDRv6.IsValid() {
		r.IPAM.Config = append(r.IPAM.Config, network.IPAMConfig{Subnet: h.o.FixedCIDRv6})
	}
	return r
}

func (h *Host) forget(id string) error {
	return h.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Delete([]byte(id)) })
}

var names = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// Create makes a network, or nothing.
func (h *Host) Create(_ context.Context, r network.CreateRequest) (n network.Network, warning string, err error) {
	if !names.MatchString(r.Name) {
		return n, "", errdef.Invalid.Errorf("invalid network name %q: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", r.Name)
	}
	s, err := h.create(r)
	if err != nil {
		return n, "", err
	}
	if s.wired() && s.bridge == "" {
		// Not with the lock held, for this may take a while.
		if err := h.probe(s); err != nil {
			h.mu.Lock()
			defer h.mu.Unlock()
			delete(h.networks, s.ID)
			return n, "", errors.Join(err, h.forget(s.ID), h.removeInterfaces(s))
		}
	}
	h.at("network-made")
	return s.Network, "", nil
}

func (h *Host) create(r network.CreateRequest) (*state, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if isPredefined(r.Name) || r.Name == network.NetworkDefault {
		return nil, errdef.Forbidden.Errorf("operation is not permitted on predefined %s network", r.Name)
	}
	for _, other := range h.networks {
		if other.Name == r.Name {
			return nil, errdef.Conflict.Errorf("network with name %s already exists", r.Name)
		}
	}
	n, err := h.describe(r, nil)
	if err != nil {
		return nil, err
	}
	s, err := newState(n)
	if err != nil {
		return nil, err
	}
	if err := h.checkUnique(s); err != nil {
		return nil, err
	}
	// The record comes first: what a crash leaves is a network like others,
	// whose interface the next start makes.
	if err := h.save(&n); err != nil {
		return nil, err
	}
	h.at("network-record")
	if s.wired() {
		if err := h.ensure(s); err != nil {
			return nil, errors.Join(err, h.removeInterfaces(s), h.forget(n.ID))
		}
	}
	h.networks[n.ID] = s
	return s, nil
}

// checkUnique refuses an interface that another network has.
func (h *Host) checkUnique(s *state) error {
	for _, other := range h.networks {
		if s.bridge != "" && other.bridge == s.bridge {
			return errdef.Forbidden.Errorf("cannot create network %s: conflicts with network %s: networks have same bridge name %s", s.Name, other.Name, s.bridge)
		}
	}
	if other := h.sharesParent(s); other != "" {
		return errdef.Forbidden.Errorf("network %s is already using parent interface %s", other, s.options.parent)
	}
	return nil
}

func isPredefined(name string) bool {
	return name == network.NetworkBridge || name == network.NetworkHost || name == network.NetworkNone
}

// describe checks a request and fills in what it leaves open. A network that
// takes the place of old keeps its ID and, where free, its subnets.
func (h *Host) describe(r network.CreateRequest, old *state) (network.Network, error) {
	n := network.Network{
		Name: r.Name, Created: time.Now().UTC(), Scope: "local", Driver: r.Driver, EnableIPv4: r.EnableIPv4 == nil || *r.EnableIPv4,
		EnableIPv6: r.EnableIPv6 != nil && *r.EnableIPv6,
		Internal:   r.Internal, Attachable: r.Attachable, ConfigOnly: r.ConfigOnly, Options: maps.Clone(r.Options), Labels: maps.Clone(r.Labels),
		IPAM: network.IPAM{Driver: "default"},
	}
	if old != nil {
		n.ID, n.Created = old.ID, old.Created
	} else {
		var id [32]byte
		rand.Read(id[:]) // never fails
		n.ID = hex.EncodeToString(id[:])
	}
	if r.IPAM != nil {
		n.IPAM.Options, n.IPAM.Config = r.IPAM.Options, slices.Clone(r.IPAM.Config)
		if d := r.IPAM.Driver; d != "" && d != "default" {
			return n, errdef.NotFound.Errorf("IPAM driver %q is not there: minke has the driver default", d)
		}
	}
	if r.Ingress || r.Scope == "swarm" {
		return n, errdef.Forbidden.Errorf("this node is not a swarm manager: minke has no networks of scope swarm")
	}
	if err := h.settleDriver(&n, r); err != nil {
		return n, err
	}
	if n.Options == nil {
		n.Options = map[string]string{}
	}
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	if _, err := parseOptions(&n); err != nil || n.ConfigOnly || n.Driver == "host" || n.Driver == "null" {
		return n, err
	}
	if !n.EnableIPv4 && !n.EnableIPv6 {
		return n, errdef.Invalid.Errorf("IPv4 or IPv6 must be enabled")
	}
	return n, h.settlePools(&n, old)
}

// settleDriver checks the driver, and takes over the configuration of another
// network.
func (h *Host) settleDriver(n *network.Network, r network.CreateRequest) error {
	from := r.ConfigFrom
	if r.ConfigOnly {
		if r.Internal || r.Attachable || r.Ingress || from != nil && from.Network != "" || r.Driver != "" && r.Driver != "null" && r.Driver != network.NetworkDefault && r.Driver != driverBridge {
			return errdef.Forbidden.Errorf("configuration network can only contain network specific fields. Network operator fields like [ ingress | internal | attachable | scope ], a driver and another configuration are not supported")
		}
		n.Driver = "null"
		return nil
	}
	if n.Driver == "" || n.Driver == network.NetworkDefault {
		n.Driver = driverBridge
	}
	switch n.Driver {
	case driverBridge, driverMacvlan, driverIPvlan:
	case "host", "null":
		if !isPredefined(r.Name) {
			return errdef.Forbidden.Errorf("only one instance of %q network is allowed", n.Driver)
		}
	default:
		return errdef.NotFound.Errorf("could not find plugin %s in v2 plugin registry: minke has the drivers bridge, macvlan, ipvlan, host and null", n.Driver)
	}
	if from == nil || from.Network == "" {
		return nil
	}
	if len(n.IPAM.Config) > 0 || len(n.Options) > 0 || n.EnableIPv6 {
		return errdef.Forbidden.Errorf("user specified configurations are not supported if the network depends on a configuration network")
	}
	var conf *state
	for _, other := range h.networks {
		if other.Name == from.Network || other.ID == from.Network {
			conf = other
		}
	}
	if conf == nil {
		return errdef.NotFound.Errorf("configuration network %q does not exist", from.Network)
	}
	if !conf.ConfigOnly {
		return errdef.Forbidden.Errorf("network %s is not a configuration network: only one made with --config-only is", conf.Name)
	}
	n.ConfigFrom.Network = conf.Name
	n.EnableIPv4, n.EnableIPv6, n.Options = conf.EnableIPv4, conf.EnableIPv6, maps.Clone(conf.Options)
	n.IPAM = network.IPAM{Driver: conf.IPAM.Driver, Options: conf.IPAM.Options, Config: slices.Clone(conf.IPAM.Config)}
	labels := maps.Clone(conf.Labels)
	maps.Copy(labels, n.Labels)
	n.Labels = labels
	return nil
}

// settlePools checks the subnets that were asked for and chooses those that
// were not.
func (h *Host) settlePools(n *network.Network, old *state) error {
	has := map[bool]bool{} // by whether it is IPv6
	n.IPAM.Config = slices.DeleteFunc(n.IPAM.Config, func(c network.IPAMConfig) bool { return reflect.ValueOf(c).IsZero() })
	for i := range n.IPAM.Config {
		c := &n.IPAM.Config[i]
		if err := h.checkPool(n, c); err != nil {
			return err
		}
		for _, other := range n.IPAM.Config[:i] {
			if other.Subnet.Overlaps(c.Subnet) {
				return errdef.Invalid.Errorf("invalid subnets %s and %s of one network: they overlap", other.Subnet, c.Subnet)
			}
		}
		has[c.Subnet.Addr().Is6()] = true
	}
	for _, v6 := range []bool{false, true} {
		if has[v6] || v6 && !n.EnableIPv6 || !v6 && !n.EnableIPv4 {
			continue
		}
		if old != nil {
			if i := slices.IndexFunc(old.IPAM.Config, func(c network.IPAMConfig) bool { return c.Subnet.Addr().Is6() == v6 }); i >= 0 {
				n.IPAM.Config = append(n.IPAM.Config, network.IPAMConfig{Subnet: old.IPAM.Config[i].Subnet})
				continue
			}
		}
		p, err := h.freePool(v6, n.ID)
		if err != nil {
			return err
		}
		n.IPAM.Config = append(n.IPAM.Config, network.IPAMConfig{Subnet: p})
	}
	for i := range n.IPAM.Config {
		c := &n.IPAM.Config[i]
		if c.Gateway.IsValid() {
			continue
		}
		for c.Gateway = c.Subnet.Addr().Next(); usedAux(c, c.Gateway); {
			c.Gateway = c.Gateway.Next()
		}
	}
	return nil
}

func usedAux(c *network.IPAMConfig, a netip.Addr) bool {
	for _, aux := range c.AuxAddress {
		if aux == a {
			return true
		}
	}
	return false
}

func (h *Host) checkPool(n *network.Network, c *network.IPAMConfig) error {
	if !c.Subnet.IsValid() {
		return errdef.Invalid.Errorf("invalid network config: an address range, gateway or auxiliary address needs its --subnet")
	}
	if c.Subnet != c.Subnet.Masked() {
		return errdef.Invalid.Errorf("invalid network config:\ninvalid subnet %s: it should be %s", c.Subnet, c.Subnet.Masked())
	}
	family, on := "IPv4", n.EnableIPv4
	if c.Subnet.Addr().Is6() {
		family, on = "IPv6", n.EnableIPv6
	}
	if !on {
		return errdef.Invalid.Errorf("invalid network config:\ninvalid subnet %s: %s has not been enabled for this network", c.Subnet, family)
	}
	if bits := c.Subnet.Addr().BitLen() - c.Subnet.Bits(); bits < 1 {
		return errdef.Invalid.Errorf("invalid network config:\ninvalid subnet %s: it has no room for a gateway and a container", c.Subnet)
	}
	if other := h.overlaps(c.Subnet, n.ID); other != "" {
		return errdef.Forbidden.Errorf("invalid pool request: Pool overlaps with other one on this address space: %s and network %s; choose another --subnet", c.Subnet, other)
	}
	if c.IPRange.IsValid() && !(c.Subnet.Contains(c.IPRange.Addr()) && c.IPRange.Bits() >= c.Subnet.Bits()) {
		return errdef.Invalid.Errorf("invalid network config:\ninvalid ip-range %s: it is not in subnet %s", c.IPRange, c.Subnet)
	}
	if c.Gateway.IsValid() && !c.Subnet.Contains(c.Gateway) {
		return errdef.Invalid.Errorf("invalid network config:\ninvalid gateway %s: parent subnet is %s", c.Gateway, c.Subnet)
	}
	for name, a := range c.AuxAddress {
		if !c.Subnet.Contains(a) {
			return errdef.Invalid.Errorf("invalid network config:\ninvalid auxiliary address %s=%s: parent subnet is %s", name, a, c.Subnet)
		}
	}
	return nil
}

// Remove deletes a network. It fails with errdef.Forbidden while containers
// are on it or networks are made after it, and for predefined networks.
func (h *Host) Remove(_ context.Context, id string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, ok := h.networks[id]
	if !ok {
		return errdef.NotFound.Errorf("network %s not found", id)
	}
	if isPredefined(n.Name) {
		return errdef.Forbidden.Errorf("%s is a pre-defined network and cannot be removed", n.Name)
	}
	for _, other := range h.networks {
		if n.ConfigOnly && other.ConfigFrom.Network == n.Name {
			return errdef.Forbidden.Errorf("configuration network %q is in use by network %s", n.Name, other.Name)
		}
	}
	for _, m := range h.members {
		if l, ok := m.endpoints[id]; ok {
			return errdef.Forbidden.Errorf("error while removing network: network %s has active endpoints (name:%q id:%q); disconnect or stop that container first", n.Name, m.sandbox.Name, l.settings.EndpointID[:12])
		}
	}
	// The record goes first: what is left of a crash has no owner, and
	// Reconcile removes it.
	if err := h.forget(id); err != nil {
		return err
	}
	h.at("network-forgotten")
	delete(h.networks, id)
	return h.removeInterfaces(n)
}

func (h *Host) removeInterfaces(n *state) error {
	if n.bridge != "" {
		if err := h.rules.change(h.rules.elementsOf(n), nil); err != nil {
			return fmt.Errorf("remove rules of network %s: %w", n.Name, err)
		}
	}
	h.at("network-rules-removed")
	return h.removeInterface(n)
}
