package network

import (
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/network"

	"github.com/minke-os/minke/internal/errdef"
)

// Names of driver options, Docker's.
const (
	optBridgeName = "com.docker.network.bridge.name"
	optICC        = "com.docker.network.bridge.enable_icc"
	optMasquerade = "com.docker.network.bridge.enable_ip_masquerade"
	optBindIPv4   = "com.docker.network.bridge.host_binding_ipv4"
	optHost4      = "com.docker.network.host_ipv4"
	optHost6      = "com.docker.network.host_ipv6"
	optInhibit4   = "com.docker.network.bridge.inhibit_ipv4"
	optMode4      = "com.docker.network.bridge.gateway_mode_ipv4"
	optMode6      = "com.docker.network.bridge.gateway_mode_ipv6"
	optDefault    = "com.docker.network.bridge.default_bridge"
	optMTU        = "com.docker.network.driver.mtu"
	optIfPrefix   = "com.docker.network.container_iface_prefix"

	// Of an endpoint.
	optIfName  = "com.docker.network.endpoint.ifname"
	optSysctls = "com.docker.network.endpoint.sysctls"

	optParent  = "parent"
	optMacvlan = "macvlan_mode"
	optIPvlan  = "ipvlan_mode"
	optIPvFlag = "ipvlan_flag"
)

// A gatewayMode says how containers of a bridge network reach the outside and
// are reached, per family.
type gatewayMode string

const (
	modeNAT         gatewayMode = "nat"             // published ports of the host; outgoing with its address
	modeUnprotected gatewayMode = "nat-unprotected" // and every port of the container's own address
	modeRouted      gatewayMode = "routed"          // published ports of the container's own address, no NAT
	modeIsolated    gatewayMode = "isolated"        // of an internal network: the host has no address on it
)

// options are a network's driver options, checked.
type options struct {
	mtu                   int
	icc, masquerade       bool
	inhibit4              bool
	bind                  netip.Addr // host address of ports that name none
	host4, host6          netip.Addr // that containers go out with; zero: the one of the way out
	mode4, mode6          gatewayMode
	ifPrefix              string
	parent                string
	macvlan, ipvlan, flag string
}

func (o *options) mode(a netip.Addr) gatewayMode {
	if a.Is4() {
		return o.mode4
	}
	return o.mode6
}

// host is what containers with an address of a's family go out with.
func (o *options) host(a netip.Addr) netip.Addr {
	if a.Is4() {
		return o.host4
	}
	return o.host6
}

// parseOptions reads the options of a network. Unknown ones are labels of
// somebody's, as in Docker.
func parseOptions(n *network.Network) (o options, err error) {
	o = options{icc: true, masquerade: true, mode4: modeNAT, mode6: modeNAT, ifPrefix: "eth", macvlan: "bridge", ipvlan: "l2", flag: "bridge"}
	get := n.Options
	for _, b := range []struct {
		name string
		to   *bool
	}{{optICC, &o.icc}, {optMasquerade, &o.masquerade}, {optInhibit4, &o.inhibit4}} {
		if v, ok := get[b.name]; ok {
			if *b.to, err = strconv.ParseBool(v); err != nil {
				return o, errdef.Invalid.Errorf("invalid value %q of option %s: want true or false", v, b.name)
			}
		}
	}
	if v, ok := get[optMTU]; ok {
		// 68 is the least that IPv4 allows (RFC 791).
		if o.mtu, err = strconv.Atoi(v); err != nil || o.mtu != 0 && (o.mtu < 68 || o.mtu > 65535) {
			return o, errdef.Invalid.Errorf("invalid MTU %q: want a number from 68 to 65535", v)
		}
	}
	for _, a := range []struct {
		name string
		to   *netip.Addr
		is   func(netip.Addr) bool
	}{{optBindIPv4, &o.bind, netip.Addr.IsValid}, {optHost4, &o.host4, netip.Addr.Is4}, {optHost6, &o.host6, netip.Addr.Is6}} {
		v := get[a.name]
		if v == "" {
			continue
		}
		if *a.to, err = netip.ParseAddr(v); err != nil || !a.is(*a.to) {
			return o, errdef.Invalid.Errorf("invalid address %q of option %s", v, a.name)
		}
	}
	if v, ok := get[optIfPrefix]; ok {
		if o.ifPrefix = v; !validIfName(v + "00") {
			return o, errdef.Invalid.Errorf("invalid interface prefix %q: want up to 13 letters and digits", v)
		}
	}
	if v, ok := get[optBridgeName]; ok && v != "" && !validIfName(v) {
		return o, errdef.Invalid.Errorf("invalid bridge name %q: want up to 15 letters, digits, - and _", v)
	}
	for _, m := range []struct {
		name string
		to   *gatewayMode
	}{{optMode4, &o.mode4}, {optMode6, &o.mode6}} {
		v, ok := get[m.name]
		if !ok {
			continue
		}
		switch *m.to = gatewayMode(v); *m.to {
		case modeNAT, modeUnprotected, modeRouted:
		case modeIsolated:
			if !n.Internal {
				return o, errdef.Invalid.Errorf("gateway mode 'isolated' can only be used for an internal network: add --internal")
			}
		default:
			return o, errdef.Invalid.Errorf("unknown gateway mode %q of option %s: want nat, nat-unprotected, routed or isolated", v, m.name)
		}
	}
	o.parent = get[optParent]
	for _, m := range []struct {
		name string
		to   *string
		want []string
	}{
		{optMacvlan, &o.macvlan, []string{"bridge", "private", "vepa", "passthru"}},
		{optIPvlan, &o.ipvlan, []string{"l2", "l3", "l3s"}},
		{optIPvFlag, &o.flag, []string{"bridge", "private", "vepa"}},
	} {
		v, ok := get[m.name]
		if !ok || v == "" {
			continue
		}
		if *m.to = v; !contains(m.want, v) {
			return o, errdef.Invalid.Errorf("unknown %s %q: want %s", m.name, v, strings.Join(m.want, ", "))
		}
	}
	return o, nil
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

var ifNames = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_.-]*$`)

func validIfName(s string) bool { return len(s) <= 15 && ifNames.MatchString(s) } // IFNAMSIZ without its NUL

// A sysctl of one interface, below /proc/sys.
type sysctl struct{ path, value string }

// endpointSysctl is one of the settings in an endpoint's option; IFNAME stands
// for the interface, whatever its name.
var endpointSysctl = regexp.MustCompile(`^net[./](ipv4|ipv6|mpls)[./](conf|neigh)[./]IFNAME[./]([a-z0-9_]+)=(.*)$`)

func parseSysctls(text, ifname string) (out []sysctl, err error) {
	if text == "" {
		return nil, nil
	}
	for _, s := range strings.Split(text, ",") {
		m := endpointSysctl.FindStringSubmatch(strings.TrimSpace(s))
		if m == nil {
			return nil, errdef.Invalid.Errorf("invalid sysctl %q of option %s: want net.ipv4.conf.IFNAME.name=value", s, optSysctls)
		}
		out = append(out, sysctl{"net/" + m[1] + "/" + m[2] + "/" + ifname + "/" + m[3], m[4]})
	}
	return out, nil
}

// CheckEndpoint refuses settings with which a container could not join n.
func CheckEndpoint(n network.Network, s *network.EndpointSettings) error {
	if s == nil {
		return nil
	}
	if v := s.DriverOpts[optIfName]; v != "" && !validIfName(v) {
		return errdef.Invalid.Errorf("invalid interface name %q: want up to 15 letters and digits", v)
	}
	if _, err := parseSysctls(s.DriverOpts[optSysctls], "eth0"); err != nil {
		return err
	}
	if len(s.MacAddress) != 0 && (len(s.MacAddress) != 6 || s.MacAddress[0]&1 != 0) {
		return errdef.Invalid.Errorf("invalid MAC address %s: want six bytes that name one station", s.MacAddress)
	}
	if n.ID == "" || s.IPAMConfig == nil {
		return nil // it need not be there before the start
	}
	for _, a := range s.IPAMConfig.LinkLocalIPs {
		if !a.IsLinkLocalUnicast() || a.Is6() && !n.EnableIPv6 {
			return errdef.Invalid.Errorf("invalid config for network %s: invalid link-local IP address: %s", n.Name, a)
		}
	}
	for _, a := range []struct {
		ip     netip.Addr
		family string
		on     bool
	}{{s.IPAMConfig.IPv4Address, "IPv4", n.EnableIPv4}, {s.IPAMConfig.IPv6Address, "IPv6", n.EnableIPv6}} {
		switch {
		case !a.ip.IsValid():
		case isPredefined(n.Name):
			return errdef.Invalid.Errorf("invalid config for network %s: user specified IP address is supported on user defined networks only", n.Name)
		case !a.on || !inSubnets(&n, a.ip):
			return errdef.Invalid.Errorf("invalid config for network %s: invalid endpoint settings: no configured subnet contains IP address %s", n.Name, a.ip)
		case a.ip.Is4() != (a.family == "IPv4"):
			return errdef.Invalid.Errorf("invalid config for network %s: invalid %s address: %s", n.Name, a.family, a.ip)
		}
	}
	return nil
}

func inSubnets(n *network.Network, ip netip.Addr) bool {
	for _, c := range n.IPAM.Config {
		if c.Subnet.Contains(ip) {
			return true
		}
	}
	return false
}
