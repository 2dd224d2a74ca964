package model

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"

	"github.com/moby/moby/api/types/network"
)

var portSpec = regexp.MustCompile(`^(?:\[?([a-fA-F\d]*[.:][a-fA-F\d.:]*?)\]?:)?(?:(\d*)(?:-(\d+))?:)?(\d+)(?:-(\d+))?(?:/(udp|tcp|sctp))?$`)

func (c *composer) ports() {
	for _, v := range c.portList() {
		if err := c.publish(v); err != nil {
			c.fail("ports", "%w", err)
			return
		}
	}
}

func (c *composer) portList() []any {
	v, ok := c.c["ports"].([]any)
	if !ok && c.c["ports"] != nil {
		c.fail("ports", "want a list such as [\"8080:80\"]")
	}
	return v
}

// publish adds one entry, "[ip:][host[-end]:]container[-end][/protocol]". An
// entry without a host part publishes the same port: a device's ports are
// where its owner expects them, never random.
func (c *composer) publish(v any) error {
	s, ok := text(v)
	m := portSpec.FindStringSubmatch(s)
	if !ok || m == nil {
		return fmt.Errorf("cannot read %v; write it as \"8080:80\" or \"127.0.0.1:53:53/udp\"", v)
	}
	var ip netip.Addr
	if m[1] != "" {
		var err error
		if ip, err = netip.ParseAddr(m[1]); err != nil {
			return fmt.Errorf("%q: %w", s, err)
		}
	}
	first, last, err := portRange(m[4], m[5])
	if err != nil {
		return fmt.Errorf("%q: %w", s, err)
	}
	hostFirst, hostLast := first, last
	if m[2] != "" {
		if hostFirst, hostLast, err = portRange(m[2], m[3]); err != nil {
			return fmt.Errorf("%q: %w", s, err)
		}
	}
	if hostLast-hostFirst != last-first {
		return fmt.Errorf("%q: the two ranges differ in length", s)
	}
	proto := m[6]
	if proto == "" {
		proto = "tcp"
	}
	for i := range last - first + 1 {
		port, _ := network.PortFrom(uint16(first+i), network.IPProtocol(proto))
		c.bind(port, network.PortBinding{HostIP: ip, HostPort: strconv.Itoa(hostFirst + i)})
	}
	return nil
}

func portRange(from, to string) (first, last int, err error) {
	if to == "" {
		to = from
	}
	first, err1 := strconv.Atoi(from)
	last, err2 := strconv.Atoi(to)
	if err1 != nil || err2 != nil || first < 1 || last > 65535 || last < first {
		return 0, 0, fmt.Errorf("%s-%s is not a range of ports", from, to)
	}
	return first, last, nil
}

func (c *composer) bind(port network.Port, b network.PortBinding) {
	if c.spec.Config.ExposedPorts == nil {
		c.spec.Config.ExposedPorts = network.PortSet{}
		c.spec.Host.PortBindings = network.PortMap{}
	}
	c.spec.Config.ExposedPorts[port] = struct{}{}
	c.spec.Host.PortBindings[port] = append(c.spec.Host.PortBindings[port], b)
}
