package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"time"

	"github.com/moby/moby/api/types/network"
	"go.etcd.io/bbolt"

	"github.com/minke-os/minke/internal/errdef"
)

var bucket = []byte("networks.1") // ID to network.Network, JSON

// bridgeNameOption is Docker's name for the interface's name.
const bridgeNameOption = "com.docker.network.bridge.name"

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
			h.networks[n.ID] = newState(n)
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

func newState(n network.Network) *state {
	s := &state{Network: n, taken: map[netip.Addr]string{}}
	if n.Driver == "bridge" && !n.ConfigOnly {
		s.bridge = n.Options[bridgeNameOption]
		if s.bridge == "" {
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
	return s
}

// predefine makes the networks bridge, host and none, which always exist.
func (h *Host) predefine() error {
	have := map[string]bool{}
	for id, n := range h.networks {
		if n.Name != network.NetworkBridge {
			have[n.Name] = true
			continue
		}
		// The flags may have changed since.
		if n.bridge == h.bridge && (!h.bip.IsValid() || n.gateway() == h.bip.Addr()) {
			have[n.Name] = true
			continue
		}
		delete(h.networks, id)
		if err := h.forget(id); err != nil {
			return err
		}
	}
	for name, driver := range map[string]string{network.NetworkHost: "host", network.NetworkNone: "null", network.NetworkBridge: "bridge"} {
		if have[name] {
			continue
		}
		req := network.CreateRequest{Name: name, Driver: driver}
		if driver == "bridge" {
			req.Options = map[string]string{bridgeNameOption: h.bridge}
			if h.bip.IsValid() {
				req.IPAM = &network.IPAM{Config: []network.IPAMConfig{{Subnet: h.bip.Masked(), Gateway: h.bip.Addr()}}}
			} else if p, ok := bridgeAddress(h.bridge); ok {
				req.IPAM = &network.IPAM{Config: []network.IPAMConfig{{Subnet: p.Masked(), Gateway: p.Addr()}}}
			}
		}
		n, err := h.describe(req)
		if err != nil {
			return err
		}
		if err := h.save(&n); err != nil {
			return err
		}
		h.networks[n.ID] = newState(n)
	}
	return nil
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
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, other := range h.networks {
		if other.Name == r.Name {
			if isPredefined(r.Name) {
				return n, "", errdef.Forbidden.Errorf("operation is not permitted on predefined %s network", r.Name)
			}
			return n, "", errdef.Conflict.Errorf("network with name %s already exists", r.Name)
		}
	}
	if n, err = h.describe(r); err != nil {
		return n, "", err
	}
	s := newState(n)
	if s.bridge != "" {
		if err := h.ensureBridge(s); err != nil {
			return n, "", err
		}
	}
	if err := h.save(&n); err != nil {
		h.removeInterfaces(s)
		return n, "", err
	}
	h.networks[n.ID] = s
	return n, "", nil
}

func isPredefined(name string) bool {
	return name == network.NetworkBridge || name == network.NetworkHost || name == network.NetworkNone
}

// describe checks a request and fills in what it leaves open.
func (h *Host) describe(r network.CreateRequest) (network.Network, error) {
	var id [32]byte
	rand.Read(id[:]) // never fails
	n := network.Network{
		Name: r.Name, ID: hex.EncodeToString(id[:]), Created: time.Now().UTC(), Scope: "local", Driver: r.Driver, EnableIPv4: true,
		Internal: r.Internal, Attachable: r.Attachable, ConfigOnly: r.ConfigOnly, Options: r.Options, Labels: r.Labels,
	}
	if n.Driver == "" || n.Driver == network.NetworkDefault {
		n.Driver = "bridge"
	}
	switch n.Driver {
	case "bridge":
	case "host", "null":
		if !isPredefined(r.Name) {
			return n, errdef.Forbidden.Errorf("only one instance of %q network is allowed", n.Driver)
		}
	default:
		return n, errdef.NotFound.Errorf("could not find plugin %s in v2 plugin registry: minke has the drivers bridge, host and null", n.Driver)
	}
	if r.ConfigFrom != nil && r.ConfigFrom.Network != "" {
		return n, errdef.Unsupported.Errorf("networks that take their configuration from another one are not supported yet")
	}
	if r.EnableIPv6 != nil && *r.EnableIPv6 {
		n.EnableIPv6 = true
	}
	if n.Options == nil {
		n.Options = map[string]string{}
	}
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	n.IPAM = network.IPAM{Driver: "default"}
	if r.IPAM != nil {
		n.IPAM.Options, n.IPAM.Config = r.IPAM.Options, r.IPAM.Config
		if d := r.IPAM.Driver; d != "" && d != "default" {
			return n, errdef.NotFound.Errorf("IPAM driver %q is not there: minke has the driver default", d)
		}
	}
	if n.Driver != "bridge" || n.ConfigOnly {
		return n, nil
	}
	if name := n.Options[bridgeNameOption]; len(name) > 15 {
		return n, errdef.Invalid.Errorf("bridge name %q is longer than 15 characters", name)
	}
	return n, h.settlePools(&n)
}

// settlePools checks the subnets that were asked for and chooses those that
// were not.
func (h *Host) settlePools(n *network.Network) error {
	has4, has6 := false, false
	for i := range n.IPAM.Config {
		c := &n.IPAM.Config[i]
		if !c.Subnet.IsValid() {
			continue
		}
		c.Subnet = c.Subnet.Masked()
		if c.Subnet.Addr().Is4() {
			has4 = true
		} else {
			has6 = true
		}
		if other := h.overlaps(c.Subnet); other != "" {
			return errdef.Forbidden.Errorf("invalid pool request: Pool overlaps with other one on this address space: %s and network %s; choose another --subnet", c.Subnet, other)
		}
		if c.IPRange.IsValid() && !(c.Subnet.Contains(c.IPRange.Addr()) && c.IPRange.Bits() >= c.Subnet.Bits()) {
			return errdef.Invalid.Errorf("ip-range %s is not in subnet %s", c.IPRange, c.Subnet)
		}
		if c.Gateway.IsValid() && !c.Subnet.Contains(c.Gateway) {
			return errdef.Invalid.Errorf("no matching subnet for gateway %s", c.Gateway)
		}
	}
	if !has4 {
		p, err := h.freePool(pools4)
		if err != nil {
			return err
		}
		n.IPAM.Config = append(dropEmpty(n.IPAM.Config), network.IPAMConfig{Subnet: p})
	}
	if n.EnableIPv6 && !has6 {
		p, err := h.freePool(pools6(n.ID))
		if err != nil {
			return err
		}
		n.IPAM.Config = append(n.IPAM.Config, network.IPAMConfig{Subnet: p})
	}
	for i := range n.IPAM.Config {
		if c := &n.IPAM.Config[i]; !c.Gateway.IsValid() {
			c.Gateway = c.Subnet.Addr().Next()
		}
	}
	return nil
}

func dropEmpty(in []network.IPAMConfig) (out []network.IPAMConfig) {
	for _, c := range in {
		if c.Subnet.IsValid() {
			out = append(out, c)
		}
	}
	return out
}

// Remove deletes a network. It fails with errdef.Forbidden while containers
// are on it, and for predefined networks.
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
	delete(h.networks, id)
	return h.removeInterfaces(n)
}

func (h *Host) removeInterfaces(n *state) error {
	if n.bridge == "" {
		return nil
	}
	if err := h.rules.removeNetwork(n); err != nil {
		return fmt.Errorf("remove rules of network %s: %w", n.Name, err)
	}
	return h.removeBridge(n.bridge)
}
