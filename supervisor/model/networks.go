package model

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// network decides between the three ways a service can be connected: its
// application's networks, a mode of the engine, or another service's network.
func (c *composer) network() {
	mode := c.text("network_mode")
	other, ofService := strings.CutPrefix(mode, "service:")
	switch {
	case ofService:
		c.spec.NetworkOf = other
		c.spec.Host.NetworkMode = container.NetworkMode(mode) // the ID is known only when it runs
		c.depend(other, Started)
		if slices.Contains(c.app.Absent, other) {
			c.fail("network_mode", "the service %s, whose contract this device does not meet, has no network to share", other)
		}
	case strings.HasPrefix(mode, "container:"):
		c.fail("network_mode", "%q names a container that may be replaced at any time; use service:<name>", mode)
	case mode == "host" || mode == "none" || mode == "bridge":
		c.spec.Host.NetworkMode = container.NetworkMode(mode)
		if mode == "host" && c.spec.Config.Hostname == "" {
			c.spec.Config.Hostname = c.dev.Hostname
		}
	case mode != "" && mode != "default":
		c.attach(mode, nil)
	default:
		c.attachAll()
	}
	if len(c.spec.Endpoints) > 0 {
		c.spec.Host.NetworkMode = container.NetworkMode(c.spec.Endpoints[0].Network)
	}
}

func (c *composer) attachAll() {
	switch v := c.c["networks"].(type) {
	case []any:
		for _, name := range texts(v) {
			c.attach(name, nil)
		}
	case map[string]any:
		// The engine makes the first one the default route; a mapping has no
		// order, so priority decides, then the name.
		names := slices.SortedFunc(maps.Keys(v), func(a, b string) int {
			return cmp.Or(cmp.Compare(priority(v[b]), priority(v[a])), strings.Compare(a, b))
		})
		for _, name := range names {
			body, _ := v[name].(map[string]any)
			c.attach(name, snakeKeys(body))
		}
	case nil:
	default:
		c.fail("networks", "want a list or an object")
	}
	if len(c.spec.Endpoints) == 0 {
		c.attach("default", nil)
	}
}

func priority(v any) int {
	body, _ := v.(map[string]any)
	n, _ := Int(body["priority"])
	return n
}

func (c *composer) attach(name string, body map[string]any) {
	ep := &network.EndpointSettings{}
	if list, ok := body["aliases"].([]any); ok {
		ep.Aliases = texts(list)
	}
	ep.Aliases = append(ep.Aliases, c.svc.Name)
	slices.Sort(ep.Aliases)
	ep.Aliases = slices.Compact(ep.Aliases)
	ipam := network.EndpointIPAMConfig{
		IPv4Address: c.addr(name, body, "ipv4_address"),
		IPv6Address: c.addr(name, body, "ipv6_address"),
	}
	if list, ok := body["link_local_ips"].([]any); ok {
		for _, s := range texts(list) {
			a, err := netip.ParseAddr(s)
			if err != nil {
				c.fail("networks."+name+".link_local_ips", "%w", err)
			}
			ipam.LinkLocalIPs = append(ipam.LinkLocalIPs, a)
		}
	}
	if ipam.IPv4Address.IsValid() || ipam.IPv6Address.IsValid() || ipam.LinkLocalIPs != nil {
		ep.IPAMConfig = &ipam
	}
	full := NetworkName(c.app.UUID, name)
	c.spec.Endpoints = append(c.spec.Endpoints, Endpoint{full, ep})
	c.spec.Networks = append(c.spec.Networks, full)
}

func (c *composer) addr(name string, body map[string]any, field string) netip.Addr {
	s, ok := Str(body[field])
	if !ok {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		c.fail("networks."+name+"."+field, "%w", err)
	}
	return a
}

// networks are the ones an application declares and its default one.
func networks(app App, services []Spec) ([]NetworkSpec, error) {
	bodies := maps.Clone(app.Networks)
	if bodies == nil {
		bodies = map[string]map[string]any{}
	}
	if _, ok := bodies["default"]; !ok {
		bodies["default"] = nil
	}
	var out []NetworkSpec
	for _, name := range slices.Sorted(maps.Keys(bodies)) {
		n, err := netSpec(app, bodies[name])
		if err != nil {
			return nil, fmt.Errorf("network %s: %w", name, err)
		}
		n.Name = NetworkName(app.UUID, name)
		if name == "default" && bodies[name] == nil {
			// An application in the host's network needs no subnet.
			n.ConfigOnly = len(services) > 0 && !slices.ContainsFunc(services, func(s Spec) bool { return !s.Host.NetworkMode.IsHost() })
		}
		n.Print = fingerprint(n)
		n.Labels[LabelPrint] = string(n.Print)
		out = append(out, n)
	}
	for _, s := range services {
		for _, used := range s.Networks {
			if !slices.ContainsFunc(out, func(n NetworkSpec) bool { return n.Name == used }) {
				return nil, fmt.Errorf("service %s uses network %q, which is not declared under networks",
					s.Service, strings.TrimPrefix(used, app.UUID+"_"))
			}
		}
	}
	return out, nil
}

func netSpec(app App, body map[string]any) (NetworkSpec, error) {
	n := NetworkSpec{
		Driver:     "bridge",
		Internal:   Truthy(body["internal"]),
		IPv6:       Truthy(body["enable_ipv6"]),
		ConfigOnly: Truthy(body["config_only"]),
		Labels:     map[string]string{},
	}
	if d, ok := Str(body["driver"]); ok {
		n.Driver = d
	}
	if opts, ok := body["driver_opts"].(map[string]any); ok {
		n.Options = stringMap(opts)
	}
	if labels, ok := body["labels"].(map[string]any); ok {
		n.Labels = stringMap(labels)
	}
	n.Labels[LabelSupervised] = "true"
	n.Labels[LabelAppID] = app.ID.String()
	ipam, _ := body["ipam"].(map[string]any)
	var err error
	if n.IPAM, err = ipamConfig(ipam); err != nil {
		return n, err
	}
	if n.IPAM != nil && len(n.IPAM.Config) > 0 {
		n.Labels["io.balena.private.ipam.config"] = "true"
	}
	return n, nil
}

func ipamConfig(body map[string]any) (*network.IPAM, error) {
	if len(body) == 0 {
		return nil, nil
	}
	out := &network.IPAM{Driver: "default"}
	if d, ok := Str(body["driver"]); ok {
		out.Driver = d
	}
	if opts, ok := body["options"].(map[string]any); ok {
		out.Options = stringMap(opts)
	}
	list, _ := body["config"].([]any)
	for _, v := range list {
		m, _ := v.(map[string]any)
		m = snakeKeys(m)
		var cfg network.IPAMConfig
		for field, to := range map[string]interface{ UnmarshalText([]byte) error }{
			"subnet": &cfg.Subnet, "gateway": &cfg.Gateway, "ip_range": &cfg.IPRange,
		} {
			s, ok := Str(m[field])
			if !ok {
				continue
			}
			if err := to.UnmarshalText([]byte(s)); err != nil {
				return nil, fmt.Errorf("ipam.config.%s: %w", field, err)
			}
		}
		out.Config = append(out.Config, cfg)
	}
	if out.Driver == "default" && out.Options == nil && out.Config == nil {
		return nil, nil
	}
	return out, nil
}
