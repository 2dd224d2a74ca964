package network

import (
	"net/netip"
	"testing"

	"github.com/moby/moby/api/types/network"

	"github.com/minke-os/minke/internal/errdef"
)

func TestAllocate(t *testing.T) {
	none := netip.Addr{}
	addr := netip.MustParseAddr
	tests := []struct {
		name       string
		config     network.IPAMConfig
		taken      map[netip.Addr]string
		asked, had netip.Addr
		want       string
		kind       errdef.Kind
	}{
		{"first-free-after-network-and-gateway", subnet("10.0.0.0/24", ""), taken("10.0.0.1", "gateway"), none, none, "10.0.0.2", ""},
		{"within-the-range", subnet("10.0.0.0/24", "10.0.0.128/25"), nil, none, none, "10.0.0.128", ""},
		{"never-the-broadcast-address", subnet("10.0.0.0/30", ""), taken("10.0.0.1", "x", "10.0.0.2", "y"), none, none, "", errdef.Unavailable},
		{"what-was-asked-for", subnet("10.0.0.0/24", ""), nil, addr("10.0.0.77"), none, "10.0.0.77", ""},
		{"asked-for-outside-of-the-range-is-fine", subnet("10.0.0.0/24", "10.0.0.128/25"), nil, addr("10.0.0.5"), none, "10.0.0.5", ""},
		{"asked-for-outside-of-the-subnet", subnet("10.0.0.0/24", ""), nil, addr("10.0.1.5"), none, "", errdef.Invalid},
		{"asked-for-but-taken", subnet("10.0.0.0/24", ""), taken("10.0.0.5", "other"), addr("10.0.0.5"), none, "", errdef.Forbidden},
		{"asked-for-but-taken-and-had-before", subnet("10.0.0.0/24", ""), taken("10.0.0.5", "other"), addr("10.0.0.5"), addr("10.0.0.5"), "", errdef.Forbidden},
		{"asked-for-and-already-ours", subnet("10.0.0.0/24", ""), taken("10.0.0.5", "me"), addr("10.0.0.5"), none, "10.0.0.5", ""},
		{"the-one-it-had", subnet("10.0.0.0/24", ""), nil, none, addr("10.0.0.9"), "10.0.0.9", ""},
		{"ipv6", subnet("fd00::/64", ""), taken("fd00::1", "gateway"), none, none, "fd00::2", ""},
		{"the-last-address-of-ipv6-is-as-good-as-any", subnet("fd00::/126", ""), taken("fd00::1", "x", "fd00::2", "y"), none, none, "fd00::3", ""},
		{"the-one-it-had-is-gone", subnet("10.0.0.0/24", ""), taken("10.0.0.9", "other"), none, addr("10.0.0.9"), "10.0.0.1", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := &state{taken: tt.taken, Network: network.Network{IPAM: network.IPAM{Config: []network.IPAMConfig{tt.config}}}}
			if n.taken == nil {
				n.taken = map[netip.Addr]string{}
			}
			got, _, err := n.allocate(tt.config.Subnet.Addr().Is6(), tt.asked, tt.had, "me")
			if tt.want == "" {
				if !errdef.Is(err, tt.kind) {
					t.Fatalf("allocate = %v, %v; want an error of kind %v", got, err, tt.kind)
				}
				return
			}
			if err != nil || got.String() != tt.want || n.taken[got] != "me" {
				t.Errorf("allocate = %v, %v, taken by %q; want %s", got, err, n.taken[got], tt.want)
			}
		})
	}
}

func subnet(p, within string) network.IPAMConfig {
	c := network.IPAMConfig{Subnet: netip.MustParsePrefix(p)}
	if within != "" {
		c.IPRange = netip.MustParsePrefix(within)
	}
	return c
}

func taken(pairs ...string) map[netip.Addr]string {
	out := map[netip.Addr]string{}
	for i := 0; i < len(pairs); i += 2 {
		out[netip.MustParseAddr(pairs[i])] = pairs[i+1]
	}
	return out
}

func TestLastAddress(t *testing.T) {
	for p, want := range map[string]string{"10.0.0.0/24": "10.0.0.255", "172.17.0.0/16": "172.17.255.255", "10.0.0.8/31": "10.0.0.9", "fd00::/64": "fd00::ffff:ffff:ffff:ffff", "0.0.0.0/0": "255.255.255.255"} {
		if got := lastOf(netip.MustParsePrefix(p)); got.String() != want {
			t.Errorf("lastOf(%s) = %s, want %s", p, got, want)
		}
	}
}
