package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testdaemon"
	"github.com/minke-os/minke/internal/testenv"
)

// makeNetwork makes a network that is gone after the test.
func makeNetwork(t *testing.T, d *testdaemon.Daemon, name string, o client.NetworkCreateOptions) string {
	t.Helper()
	n, err := d.NetworkCreate(t.Context(), name, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.NetworkRemove(context.Background(), name, client.NetworkRemoveOptions{}) })
	return n.ID
}

func yes() *bool { v := true; return &v }

// A site is a container whose port 80 answers, by TCP and UDP, with the address
// that it was called from.
type site struct {
	d    *testdaemon.Daemon
	id   string
	stop func() // its server, which keeps the container's network
}

// newSite starts one on a network, published as asked for.
func newSite(t *testing.T, d *testdaemon.Daemon, name, netName string, bindings ...network.PortBinding) site {
	t.Helper()
	c := cmd("sleep", "6000")
	tcp, udp := network.MustParsePort("80/tcp"), network.MustParsePort("80/udp")
	c.ExposedPorts = network.PortSet{tcp: {}, udp: {}}
	s := site{d: d, id: d.RunDetached(testdaemon.Spec{Name: name, Config: c, Host: container.HostConfig{
		NetworkMode: container.NetworkMode(netName), PortBindings: network.PortMap{tcp: bindings, udp: bindings},
	}})}
	s.listen(t)
	return s
}

// listen has the container's port 80 answer. The server is this process, on the
// container's network.
func (s *site) listen(t *testing.T) {
	t.Helper()
	err := s.d.InContainer(s.id, func() error {
		l, err := net.Listen("tcp", ":80")
		if err != nil {
			return err
		}
		c, err := net.ListenPacket("udp", ":80")
		if err != nil {
			return err
		}
		s.stop = func() { l.Close(); c.Close() }
		t.Cleanup(s.stop)
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(conn, callerOf(conn.RemoteAddr()))
				conn.Close()
			}
		}()
		go func() {
			buf := make([]byte, 64)
			for {
				_, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				c.WriteTo([]byte(callerOf(from)), from)
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func callerOf(a net.Addr) string { return netip.MustParseAddrPort(a.String()).Addr().Unmap().String() }

// at is where its port is published on an address of the host.
func (s site) at(t *testing.T, proto, host string) string {
	t.Helper()
	for _, b := range s.d.Inspect(s.id).NetworkSettings.Ports[network.MustParsePort("80/"+proto)] {
		if b.HostIP.Is6() == strings.Contains(host, ":") {
			return net.JoinHostPort(host, b.HostPort)
		}
	}
	t.Fatalf("port 80/%s is not published: %v", proto, s.d.Inspect(s.id).NetworkSettings.Ports)
	return ""
}

func (s site) endpoint(name string) *network.EndpointSettings {
	return s.d.Inspect(s.id).NetworkSettings.Networks[name]
}

// whoAmI calls a site from some network, and tells as whom the site sees the
// caller; "" if it does not answer.
func whoAmI(on func(func() error) error, proto, addr string) string {
	return whoAmIWithin(soon, on, proto, addr)
}

// expect is whoAmI where an answer is wanted, however slow this machine is, or
// none.
func expect(want string, on func(func() error) error, proto, addr string) (got string) {
	got = whoAmI(on, proto, addr)
	for end := time.Now().Add(20 * time.Second); want != "" && got == "" && time.Now().Before(end); {
		got = whoAmIWithin(5*time.Second, on, proto, addr)
	}
	return got
}

func whoAmIWithin(wait time.Duration, on func(func() error) error, proto, addr string) string {
	var c net.Conn
	err := on(func() (err error) { c, err = net.DialTimeout(proto, addr, wait); return err })
	if err != nil {
		return ""
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(wait))
	if proto == "udp" {
		c.Write([]byte("?"))
	}
	b := make([]byte, 64)
	n, _ := c.Read(b)
	return string(b[:n])
}

// from is the network of a container, for whoAmI.
func (s site) from(f func() error) error { return s.d.InContainer(s.id, f) }

const soon = 500 * time.Millisecond // nothing that is dropped takes longer here

func TestPortsAndIsolationBetweenTwoHosts(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t)
	n := d.Neighbor()
	makeNetwork(t, d, "dual", client.NetworkCreateOptions{EnableIPv6: yes()})
	makeNetwork(t, d, "v4", client.NetworkCreateOptions{})
	makeNetwork(t, d, "inner", client.NetworkCreateOptions{Internal: true, EnableIPv6: yes()})
	dual, v4 := newSite(t, d, "dual", "dual", network.PortBinding{}), newSite(t, d, "v4", "v4", network.PortBinding{})
	local := newSite(t, d, "local", "v4", network.PortBinding{HostIP: netip.MustParseAddr("127.0.0.1")})
	hidden, inner := newSite(t, d, "hidden", "dual"), newSite(t, d, "inner", "inner")
	v4Gateway := v4.endpoint("v4").Gateway.String()
	dual4, dual6 := dual.endpoint("dual").Gateway.String(), dual.endpoint("dual").IPv6Gateway.String()
	const host4, host6, near4, near6 = testdaemon.HostIPv4, testdaemon.HostIPv6, testdaemon.NeighborIPv4, testdaemon.NeighborIPv6
	for _, proto := range []string{"tcp", "udp"} {
		for _, tt := range []struct {
			name string
			on   func(func() error) error
			addr string
			want string // who the site sees; "any", "" for no answer
		}{
			{"from-a-neighbour-by-ipv4", n.Do, dual.at(t, proto, host4), near4},
			{"from-a-neighbour-by-ipv6", n.Do, dual.at(t, proto, host6), near6},
			{"from-a-neighbour-to-a-network-without-ipv6", n.Do, v4.at(t, proto, host4), near4},
			{"from-a-neighbour-by-ipv6-to-a-network-without", n.Do, v4.at(t, proto, host6), v4Gateway},
			{"from-a-neighbour-what-is-for-the-host-alone", n.Do, local.at(t, proto, host4), ""},
			{"from-the-host-what-is-for-it-alone", d.InNetNS, local.at(t, proto, "127.0.0.1"), "any"},
			{"from-the-host-by-loopback", d.InNetNS, dual.at(t, proto, "127.0.0.1"), "any"},
			{"from-the-host-by-ipv6-loopback", d.InNetNS, dual.at(t, proto, "::1"), "any"},
			{"from-the-host-by-ipv6-loopback-to-a-network-without", d.InNetNS, v4.at(t, proto, "::1"), "any"},
			{"from-the-host-by-its-address", d.InNetNS, dual.at(t, proto, host4), "any"},
			{"from-the-host-by-its-ipv6-address", d.InNetNS, dual.at(t, proto, host6), "any"},
			{"hairpin-to-itself", dual.from, dual.at(t, proto, host4), "any"},
			{"hairpin-to-itself-by-ipv6", dual.from, dual.at(t, proto, host6), "any"},
			{"hairpin-by-the-gateway", dual.from, dual.at(t, proto, dual4), "any"},
			{"hairpin-by-the-ipv6-gateway", hidden.from, dual.at(t, proto, dual6), "any"},
			{"hairpin-to-another-of-the-network", hidden.from, dual.at(t, proto, host4), "any"},
			{"hairpin-to-another-of-the-network-by-ipv6", hidden.from, dual.at(t, proto, host6), "any"},
			{"published-port-from-another-network", v4.from, dual.at(t, proto, host4), "any"},
			{"not-from-an-internal-network", inner.from, dual.at(t, proto, host4), ""},
			{"not-from-an-internal-network-by-ipv6", inner.from, dual.at(t, proto, host6), ""},
			{"on-one-network", hidden.from, net.JoinHostPort(dual.endpoint("dual").IPAddress.String(), "80"), hidden.endpoint("dual").IPAddress.String()},
			{"on-one-network-by-ipv6", hidden.from, net.JoinHostPort(dual.endpoint("dual").GlobalIPv6Address.String(), "80"), hidden.endpoint("dual").GlobalIPv6Address.String()},
			{"not-from-another-network", v4.from, net.JoinHostPort(dual.endpoint("dual").IPAddress.String(), "80"), ""},
			{"not-a-loopback-address-of-the-host", dual.from, v4.at(t, proto, "127.0.0.1"), ""},
		} {
			t.Run(proto+"-"+tt.name, func(t *testing.T) {
				got := expect(tt.want, tt.on, proto, tt.addr)
				if tt.want == "any" && got == "" || tt.want != "any" && got != tt.want {
					t.Errorf("the site at %s sees %q, want %q", tt.addr, got, tt.want)
				}
			})
		}
	}
	// A neighbour that sends straight to containers.
	var wg sync.WaitGroup
	for _, s := range []site{dual, v4, hidden, inner} {
		for name, ep := range d.Inspect(s.id).NetworkSettings.Networks {
			for _, p := range prefixes(ep) {
				n.Route(p.Masked().String())
				for _, proto := range []string{"tcp", "udp"} {
					wg.Go(func() {
						if got := whoAmI(n.Do, proto, net.JoinHostPort(p.Addr().String(), "80")); got != "" {
							t.Errorf("a neighbour reached %s/%s on %s, as %s", p.Addr(), proto, name, got)
						}
					})
				}
			}
		}
	}
	wg.Wait()
	// Out, with the host's address.
	for _, tt := range []struct {
		name     string
		s        site
		at, want string
	}{
		{"out-by-ipv4", dual, near4, host4}, {"out-by-ipv6", dual, near6, host6},
		{"not-out-of-an-internal-network", inner, near4, ""}, {"not-out-of-an-internal-network-by-ipv6", inner, near6, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := callerOutside(t, n, tt.at, tt.want, tt.s.from); got != tt.want {
				t.Errorf("a server outside sees %q, want %q", got, tt.want)
			}
		})
	}
}

// callerOutside calls a server on the neighbour, and tells as whom it sees the
// caller; none is wanted if want is empty.
func callerOutside(t *testing.T, n *testdaemon.Neighbor, addr, want string, on func(func() error) error) string {
	t.Helper()
	var l net.Listener
	if err := n.Do(func() (err error) { l, err = net.Listen("tcp", net.JoinHostPort(addr, "0")); return err }); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, callerOf(c.RemoteAddr()))
			c.Close()
		}
	}()
	return expect(want, on, "tcp", l.Addr().String())
}

// prefixes are the addresses of an endpoint.
func prefixes(ep *network.EndpointSettings) (out []netip.Prefix) {
	for _, p := range []netip.Prefix{netip.PrefixFrom(ep.IPAddress, ep.IPPrefixLen), netip.PrefixFrom(ep.GlobalIPv6Address, ep.GlobalIPv6PrefixLen)} {
		if p.IsValid() {
			out = append(out, p)
		}
	}
	return out
}

func TestGatewayModesAndICC(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t)
	n := d.Neighbor()
	mode := func(m string) client.NetworkCreateOptions {
		return client.NetworkCreateOptions{EnableIPv6: yes(), Options: map[string]string{
			"com.docker.network.bridge.gateway_mode_ipv4": m, "com.docker.network.bridge.gateway_mode_ipv6": m,
		}}
	}
	makeNetwork(t, d, "routed", mode("routed"))
	makeNetwork(t, d, "open", mode("nat-unprotected"))
	isolated := mode("isolated")
	isolated.Internal = true
	makeNetwork(t, d, "isolated", isolated)
	makeNetwork(t, d, "apart", client.NetworkCreateOptions{EnableIPv6: yes(), Options: map[string]string{"com.docker.network.bridge.enable_icc": "false"}})
	makeNetwork(t, d, "plain", client.NetworkCreateOptions{EnableIPv6: yes(), Options: map[string]string{
		"com.docker.network.bridge.enable_ip_masquerade": "false", "com.docker.network.bridge.host_binding_ipv4": "127.0.0.1", "com.docker.network.driver.mtu": "1400",
	}})
	const other4, other6 = "10.99.0.7", "fd99::7"
	for _, a := range []string{other4 + "/24", other6 + "/64"} {
		if out, err := d.Command(t.Context(), testenv.Need(t, "ip"), "addr", "add", a, "dev", "up0", "nodad"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	makeNetwork(t, d, "sent", client.NetworkCreateOptions{EnableIPv6: yes(), Options: map[string]string{
		"com.docker.network.host_ipv4": other4, "com.docker.network.host_ipv6": other6,
	}})
	sent := newSite(t, d, "sent", "sent")
	routed, routedHidden := newSite(t, d, "routed", "routed", network.PortBinding{}), newSite(t, d, "routed-hidden", "routed")
	open, alone := newSite(t, d, "open", "open"), newSite(t, d, "alone", "isolated")
	apart, other := newSite(t, d, "apart", "apart", network.PortBinding{}), newSite(t, d, "other", "apart")
	plain := newSite(t, d, "plain", "plain", network.PortBinding{})
	for _, s := range []string{"routed", "open", "plain"} {
		for _, c := range inspectNetwork(t, d, s).IPAM.Config {
			n.Route(c.Subnet.String())
		}
	}
	direct := func(s site, name string, v6 bool) string {
		return net.JoinHostPort(prefixes(s.endpoint(name))[map[bool]int{true: 1}[v6]].Addr().String(), "80")
	}
	var wg sync.WaitGroup
	for _, v6 := range []bool{false, true} {
		near, host := testdaemon.NeighborIPv4, testdaemon.HostIPv4
		if v6 {
			near, host = testdaemon.NeighborIPv6, testdaemon.HostIPv6
		}
		for _, proto := range []string{"tcp", "udp"} {
			for _, tt := range []struct {
				name string
				on   func(func() error) error
				addr string
				want string
			}{
				{"routed-published-port-by-the-container's-address", n.Do, direct(routed, "routed", v6), near},
				{"routed-port-that-is-not-published", n.Do, direct(routedHidden, "routed", v6), ""},
				{"routed-port-from-another-network", open.from, direct(routed, "routed", v6), ""},
				{"unprotected-port-that-is-not-published", n.Do, direct(open, "open", v6), near},
				{"icc-off", other.from, direct(apart, "apart", v6), ""},
				{"icc-off-published-port-by-the-host's-address", other.from, apart.at(t, proto, host), "any"},
				{"icc-off-published-port-from-outside", n.Do, apart.at(t, proto, host), near},
				{"the-host-reaches-no-isolated-network", d.InNetNS, direct(alone, "isolated", v6), ""},
			} {
				wg.Go(func() {
					got := expect(tt.want, tt.on, proto, tt.addr)
					if tt.want == "any" && got == "" || tt.want != "any" && got != tt.want {
						t.Errorf("%s, %s to %s: the site sees %q, want %q", tt.name, proto, tt.addr, got, tt.want)
					}
				})
			}
		}
	}
	wg.Wait()
	for near, want := range map[string]string{testdaemon.NeighborIPv4: other4, testdaemon.NeighborIPv6: other6} {
		if got := callerOutside(t, n, near, want, sent.from); got != want {
			t.Errorf("with host_ipv4 and host_ipv6 a server outside sees %q, want %q", got, want)
		}
	}
	if got := callerOutside(t, n, testdaemon.NeighborIPv4, "any", plain.from); got != plain.endpoint("plain").IPAddress.String() {
		t.Errorf("without masquerading a server outside sees %q, want the container's address", got)
	}
	if got := d.Inspect(plain.id).NetworkSettings.Ports[network.MustParsePort("80/tcp")]; len(got) != 1 || got[0].HostIP.String() != "127.0.0.1" {
		t.Errorf("with host_binding_ipv4 ports are published at %v, want 127.0.0.1 alone", got)
	}
	if out, _ := d.Exec(plain.id, "cat", "/sys/class/net/eth0/mtu"); out != "1400\n" {
		t.Errorf("MTU in the container = %q, want 1400", out)
	}
}

func inspectNetwork(t *testing.T, d *testdaemon.Daemon, name string) network.Inspect {
	t.Helper()
	n, err := d.NetworkInspect(t.Context(), name, client.NetworkInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return n.Network
}

// keepTrying tries until there is no error, for some seconds.
func keepTrying(t *testing.T, try func() error) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); ; {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
