package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/minke-os/minke/engine"
)

// network is what flags and file say of the default network and of others.
func (c *config) network() engine.NetworkOptions {
	return engine.NetworkOptions{
		Bridge: c.Bridge, BIP: c.BIP.Prefix, FixedCIDR: c.FixedCIDR.Prefix, IPv6: c.IPv6, FixedCIDRv6: c.FixedV6.Prefix,
		MTU: c.MTU, NoICC: !c.ICC, BindIP: c.BindIP.Addr, Pools: c.Pools,
	}
}

// prefix is a netip.Prefix as a flag and in JSON.
type prefix struct{ netip.Prefix }

func (p *prefix) Set(s string) (err error) {
	if p.Prefix, err = netip.ParsePrefix(s); err != nil {
		return fmt.Errorf("invalid address: want for example 172.17.0.1/16")
	}
	return nil
}

func (p *prefix) String() string {
	if p == nil || !p.IsValid() {
		return ""
	}
	return p.Prefix.String()
}

func (p *prefix) Type() string { return "address" }

// address is a netip.Addr as a flag and in JSON.
type address struct{ netip.Addr }

func (a *address) Set(s string) (err error) {
	if a.Addr, err = netip.ParseAddr(s); err != nil {
		return fmt.Errorf("invalid address: want for example 192.168.1.2")
	}
	return nil
}

func (a *address) String() string {
	if a == nil || !a.IsValid() {
		return ""
	}
	return a.Addr.String()
}

func (a *address) Type() string { return "address" }

// pools are address pools, as base=…,size=… in flags, in JSON as dockerd has
// them: [{"base": "10.0.0.0/8", "size": 24}].
type pools []engine.AddressPool

func (p *pools) Set(s string) error {
	var pool engine.AddressPool
	for _, field := range strings.Split(s, ",") {
		key, value, _ := strings.Cut(field, "=")
		var err error
		switch key {
		case "base":
			pool.Base, err = netip.ParsePrefix(value)
		case "size":
			pool.Size, err = strconv.Atoi(value)
		default:
			err = fmt.Errorf("unexpected key %q", key)
		}
		if err != nil {
			return fmt.Errorf("invalid default address pool %q: want base=10.0.0.0/8,size=24: %w", s, err)
		}
	}
	*p = append(*p, pool)
	return nil
}

func (p *pools) String() string {
	if p == nil {
		return ""
	}
	var out []string
	for _, pool := range *p {
		out = append(out, fmt.Sprintf("base=%s,size=%d", pool.Base, pool.Size))
	}
	return strings.Join(out, " ")
}

func (p *pools) Type() string { return "pool" }

func (p *pools) UnmarshalJSON(data []byte) error {
	var list []struct {
		Base prefix `json:"base"`
		Size int    `json:"size"`
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return err
	}
	*p = nil
	for _, l := range list {
		*p = append(*p, engine.AddressPool{Base: l.Base.Prefix, Size: l.Size})
	}
	return nil
}
