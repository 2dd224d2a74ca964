package network

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/network"
	"golang.org/x/net/dns/dnsmessage"
)

// answer finds a name on the networks of m. A name that is known but has no
// address of the type asked for gets an empty answer.
func (h *Host) answer(m *member, q dnsmessage.Question) (out []dnsmessage.Resource, known bool) {
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: ttl}
	if q.Class != dnsmessage.ClassINET {
		return nil, false
	}
	if ip, ok := reverseAddr(name); ok && q.Type == dnsmessage.TypePTR {
		if owner := h.ownerOf(m, ip); owner != "" {
			if target, err := dnsmessage.NewName(owner + "."); err == nil {
				return []dnsmessage.Resource{{Header: head, Body: &dnsmessage.PTRResource{PTR: target}}}, true
			}
		}
		return nil, false
	}
	addrs := h.addressesOf(m, name)
	for _, a := range addrs {
		switch {
		case a.Is4() && q.Type == dnsmessage.TypeA:
			out = append(out, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: a.As4()}})
		case a.Is6() && q.Type == dnsmessage.TypeAAAA:
			out = append(out, dnsmessage.Resource{Header: head, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	if len(out) > 1 {
		// Clients take the first: spread them.
		n := int(time.Now().UnixNano()/1000) % len(out)
		out = append(out[n:], out[:n]...)
	}
	return out, len(addrs) > 0
}

func (h *Host) addressesOf(m *member, name string) (out []netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if name == "host.docker.internal" || name == "gateway.docker.internal" {
		for id := range m.endpoints {
			n := h.networks[id]
			if n == nil || n.bridge == "" {
				continue
			}
			for _, c := range n.IPAM.Config {
				if h.hostHasAddress(n, c.Gateway) {
					out = append(out, c.Gateway)
				}
			}
			if len(out) > 0 {
				return out
			}
		}
	}
	for id := range m.endpoints {
		n := h.networks[id]
		if n == nil || !n.wired() || n.Name == network.NetworkBridge {
			continue
		}
		// "web.mynet" names the network as well.
		short, ok := strings.CutSuffix(name, "."+strings.ToLower(n.Name))
		if !ok {
			short = name
		}
		for _, other := range h.members {
			l, on := other.endpoints[id]
			if !on || !slices.ContainsFunc(l.names, func(s string) bool { return strings.EqualFold(s, short) }) {
				continue
			}
			for _, p := range l.prefixes() {
				out = append(out, p.Addr())
			}
		}
	}
	return out
}

func (h *Host) ownerOf(m *member, ip netip.Addr) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id := range m.endpoints {
		for _, other := range h.members {
			l, on := other.endpoints[id]
			if on && len(l.names) > 0 && (l.settings.IPAddress == ip || l.settings.GlobalIPv6Address == ip) {
				return l.names[0] + "." + h.networks[id].Name
			}
		}
	}
	return ""
}

// reverseAddr reads "4.3.2.1.in-addr.arpa" and the long form of IPv6.
func reverseAddr(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(rest, ".")
		slices.Reverse(parts)
		a, err := netip.ParseAddr(strings.Join(parts, "."))
		return a, err == nil
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa")
	digits := strings.Split(rest, ".")
	if !ok || len(digits) != 32 {
		return netip.Addr{}, false
	}
	slices.Reverse(digits)
	var sb strings.Builder
	for i, d := range digits {
		if i > 0 && i%4 == 0 {
			sb.WriteByte(':')
		}
		sb.WriteString(d)
	}
	a, err := netip.ParseAddr(sb.String())
	return a, err == nil
}
