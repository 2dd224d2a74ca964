package main

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/minke-os/minke/internal/testdaemon"
)

// dockerCLI runs the docker command on a daemon, with ~ for a space within an
// argument; the test skips where there is none.
func dockerCLI(t *testing.T, d *testdaemon.Daemon) func(args string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("docker")
	if err != nil {
		t.Skip("no docker command on the PATH")
	}
	return func(args string) (string, error) {
		words := strings.Fields(args)
		for i := range words {
			words[i] = strings.ReplaceAll(words[i], "~", " ")
		}
		out, err := d.Command(context.Background(), path, words...)
		return strings.TrimSpace(out), err
	}
}

// docked is a docker command and what its output must contain.
type docked struct {
	args string
	fail bool
	want string
}

func runLines(t *testing.T, docker func(string) (string, error), lines []docked) {
	t.Helper()
	for _, l := range lines {
		out, err := docker(l.args)
		if (err != nil) != l.fail || !strings.Contains(out, l.want) {
			t.Errorf("docker %s: %q, %v; want %q, an error: %v", l.args, out, err, l.want, l.fail)
		}
	}
}

func TestNetworkOptionsOfTheCLI(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t, "--default-address-pool", "base=10.77.0.0/16,size=24", "--default-address-pool", "base=10.78.0.0/16,size=28")
	docker := dockerCLI(t, d)
	t.Cleanup(func() { // what is left of a failure
		docker("rm -f aa bb")
		d.Command(context.Background(), "sh", "-c", "docker network prune -f")
	})
	runLines(t, docker, []docked{
		// IPAM.
		{"network create pool", false, ""},
		{"network inspect -f {{(index~.IPAM.Config~0).Subnet}} pool", false, "10.77."},
		{"network create --subnet 10.5.0.0/24 --ip-range 10.5.0.128/25 --gateway 10.5.0.254 --aux-address nas=10.5.0.128 --subnet fd05::/64 --ipv6 own", false, ""},
		{"run -d --name aa --network own --ip6 fd05::99 busybox sleep 6000", false, ""},
		{"exec aa ip -o addr show eth0", false, "10.5.0.129/24"},
		{"exec aa ip -o addr show eth0", false, "fd05::99/64"},
		{"exec aa ip route", false, "default via 10.5.0.254"},
		{"run --rm --network own --ip6 fd05::99 busybox true", true, "Address already in use"},
		{"run --rm --network own --ip 10.5.0.128 busybox true", true, "Address already in use"},
		{"run --rm --network own --ip 10.5.0.7 busybox ip -o addr show eth0", false, "10.5.0.7/24"},
		{"run --rm --network own --ip 10.6.0.7 busybox true", true, "no configured subnet contains IP address 10.6.0.7"},
		{"run --rm --ip 10.77.0.9 busybox true", true, "user specified IP address is supported on user defined networks only"},
		{"run --rm --network own --mac-address 02:11:22:33:44:55 busybox cat /sys/class/net/eth0/address", false, "02:11:22:33:44:55"},
		{"network create --subnet 10.5.0.128/25 twice", true, "Pool overlaps with other one on this address space"},
		{"network create --subnet 10.9.0.1/24 bits", true, "it should be 10.9.0.0/24"},
		{"network create --subnet 10.9.0.0/24 --gateway 10.10.0.1 far", true, "10.10.0.1"},
		{"network create --subnet 10.9.0.0/24 --ip-range 10.10.0.0/25 far", true, "10.10.0.0/25"},
		{"network create --subnet fd09::/64 v4only", true, "IPv6 has not been enabled"},
		{"network create bad/name", true, "invalid network name"},
		{"network create own", true, "network with name own already exists"},
		{"network create bridge", true, "operation is not permitted on predefined bridge network"},
		{"network create -d overlay o", true, "could not find plugin overlay"},
		{"network create --ipv4=false none-at-all", true, "IPv4 or IPv6 must be enabled"},
		{"network create --subnet 10.4.0.0/30 tiny", false, ""},
		{"run -d --name bb --network tiny busybox sleep 6000", false, ""},
		{"run --rm --network tiny busybox true", true, "no available addresses on this network's address pools"},
		{"rm -f bb", false, ""},
		{"run --rm --network own --link-local-ip 169.254.7.7 busybox ip -o addr show eth0", false, "169.254.7.7/16"},
		{"run --rm --network own --link-local-ip 10.1.1.1 busybox true", true, "invalid link-local IP address"},
		// A new name is known at once, and the old one no more.
		{"rename aa cc", false, ""},
		{"run --rm --network own busybox nslookup cc", false, "10.5.0.129"},
		{"run --rm --network own busybox nslookup aa", true, ""},
		{"inspect -f {{.NetworkSettings.Networks.own.DNSNames}} cc", false, "[cc"},
		{"run --rm --name aa --network own --ip 10.5.0.129 busybox true", true, "Address already in use"},
		{"rename cc aa", false, ""},
		// Options of the bridge.
		{"network create -o com.docker.network.bridge.name=mtx0 -o com.docker.network.container_iface_prefix=lan named", false, ""},
		{"run --rm --network named busybox ip -o addr show lan0", false, "inet 10."},
		{"run --rm --network host busybox ip -o link show mtx0", false, "mtx0"},
		{"network create -o com.docker.network.bridge.name=mtx0 again", true, "networks have same bridge name mtx0"},
		{"network create -o com.docker.network.bridge.name=mtx0/../x bad", true, "invalid bridge name"},
		{"network create -o com.docker.network.driver.mtu=many bad", true, "invalid MTU"},
		{"network create -o com.docker.network.bridge.enable_icc=maybe bad", true, "want true or false"},
		{"network create -o com.docker.network.bridge.gateway_mode_ipv4=isolated bad", true, "only be used for an internal network"},
		// IPv6 alone.
		{"network create --ipv4=false --ipv6 six", false, ""},
		{"run --rm --network six busybox ip -o addr show eth0", false, "inet6 fd"},
		{"run --rm --network six busybox ip -6 route", false, "default via fd"},
		// Configuration of another network.
		{"network create --config-only --subnet 10.6.0.0/24 -o com.docker.network.driver.mtu=1380 --label l=1 conf", false, ""},
		{"network create --config-from conf derived", false, ""},
		{"network inspect -f {{.ConfigFrom.Network}}~{{(index~.IPAM.Config~0).Subnet}}~{{.Labels.l}} derived", false, "conf 10.6.0.0/24 1"},
		{"run --rm --network derived busybox cat /sys/class/net/eth0/mtu", false, "1380"},
		{"run --rm --network conf busybox true", true, "config-only"},
		{"network rm conf", true, "in use"},
		{"network create --config-from conf --subnet 10.8.0.0/24 both", true, "not supported if the network depends on a configuration network"},
		{"network create --config-from own wrong", true, "is not a configuration network"},
		{"network create --config-from nosuch wrong", true, "does not exist"},
		{"network create --config-only --internal wrong", true, "not supported"},
		// Connect and disconnect while running.
		{"network connect --driver-opt com.docker.network.endpoint.ifname=wan0 --driver-opt com.docker.network.endpoint.sysctls=net.ipv4.conf.IFNAME.log_martians=1 --gw-priority 10 --ip 10.6.0.66 --alias x derived aa", false, ""},
		{"exec aa ip -o addr show wan0", false, "10.6.0.66/24"},
		{"exec aa cat /proc/sys/net/ipv4/conf/wan0/log_martians", false, "1"},
		{"exec aa ip route", false, "default via 10.6.0.1"},
		{"network connect derived aa", true, "already exists in network derived"},
		{"network disconnect derived aa", false, ""},
		{"exec aa ip route", false, "default via 10.5.0.254"},
		{"network disconnect derived aa", true, "is not connected to network derived"},
		{"network disconnect -f derived aa", false, ""},
		{"network connect --driver-opt com.docker.network.endpoint.ifname=eth0 derived aa", true, "the container has an interface eth0 already"},
		{"network connect --driver-opt com.docker.network.endpoint.sysctls=kernel.hostname=x derived aa", true, "invalid sysctl"},
		{"network connect --driver-opt com.docker.network.endpoint.ifname=a/b derived aa", true, "invalid interface name"},
		{"exec aa ip -o link", false, "eth0"},
		{"run --rm --network name=own,gw-priority=-1 --network derived busybox ip route", false, "default via 10.6.0.1"},
		{"run --rm --network name=own,driver-opt=com.docker.network.endpoint.ifname=eth1 --network derived busybox ip -o addr show eth1", false, "10.5.0."},
		{"network ls --filter dangling=true --format {{.Name}}", false, "named"},
		{"network rm own", true, "has active endpoints"},
		{"rm -f aa", false, ""},
		{"network prune -f", false, "own"},
	})
	if out, _ := docker("network ls --filter type=custom --format {{.Name}}"); out != "conf" {
		t.Errorf("networks after prune: %q, want the configuration alone", out)
	}
	runLines(t, docker, []docked{{"network rm conf", false, ""}})
	if links := d.Links(); slices.ContainsFunc(links, func(l string) bool { return strings.HasPrefix(l, "br-") || strings.HasPrefix(l, "mk") || l == "mtx0" }) {
		t.Errorf("interfaces after prune: %v, want no bridges", links)
	}
}

func TestFlagsOfTheDefaultNetwork(t *testing.T) {
	t.Parallel()
	flags := []string{"--bip", "10.44.0.1/24", "--fixed-cidr", "10.44.0.64/26", "--ipv6", "--fixed-cidr-v6", "fd44::/64", "--icc=false", "--mtu", "1400", "--ip", "127.0.0.1"}
	d := testdaemon.Start(t, flags...)
	docker := dockerCLI(t, d)
	id := inspectNetwork(t, d, "bridge").ID
	runLines(t, docker, []docked{
		{"run -d --name aa -p 80 busybox sleep 6000", false, ""},
		{"exec aa ip -o addr show eth0", false, "inet 10.44.0.64/24"},
		{"exec aa ip -o addr show eth0", false, "inet6 fd44::2/64"},
		{"exec aa cat /sys/class/net/eth0/mtu", false, "1400"},
		{"exec aa ping -c 1 -W 1 10.44.0.1", false, "1 packets received"},
		{"run --rm busybox ping -c 1 -W 1 10.44.0.64", true, "0 packets received"},
		{"port aa", false, "-> 127.0.0.1:"},
		{"rm -f aa", false, ""},
	})
	d.Stop()
	d.Up("--bip", "10.45.0.1/24", "--fixed-cidr", "10.45.0.0/28", "--icc=true")
	runLines(t, docker, []docked{
		{"run --rm busybox ip -o addr show eth0", false, "inet 10.45.0.2/24"},
		{"run -d --name aa busybox sleep 6000", false, ""},
		{"run --rm busybox ping -c 1 -W 5 10.45.0.2", false, "1 packets received"},
		{"rm -f aa", false, ""},
	})
	if got := inspectNetwork(t, d, "bridge").ID; got != id {
		t.Errorf("the default network has another ID after a change of flags: %s, was %s", got, id)
	}
	for _, bad := range [][]string{{"--bip", "10.44.0.0/24"}, {"--fixed-cidr-v6", "fd44::/64"}, {"--mtu", "1"}, {"--default-address-pool", "base=10.0.0.0/8,size=4"}, {"--bridge", "a/b"}} {
		if out, err := d.Command(t.Context(), "minked", append([]string{"--validate"}, bad...)...); err == nil {
			t.Errorf("minked %v: %q, want it refused", bad, out)
		}
	}
}

func TestMacvlanIsOnTheNeighboursNetwork(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t)
	n := d.Neighbor()
	docker := dockerCLI(t, d)
	runLines(t, docker, []docked{
		{"network create -d macvlan -o parent=up0 --subnet 10.99.0.0/24 --gateway 10.99.0.2 --ip-range 10.99.0.128/25 --ipv6 --subnet fd99::/64 --ip-range fd99::100/120 lan", false, ""},
		{"network create -d macvlan -o parent=up0 --subnet 10.98.0.0/24 second", true, "is already using parent interface up0"},
		{"network create -d macvlan -o parent=nosuch wrong", true, "parent interface nosuch is not there"},
		{"network create -d macvlan -o parent=up0.5000 wrong", true, "invalid subinterface vlan name"},
		{"network create -d macvlan -o macvlan_mode=odd -o parent=up0 wrong", true, "unknown macvlan_mode"},
	})
	a, b := newSite(t, d, "aa", "lan"), newSite(t, d, "bb", "lan")
	for i, near := range []string{testdaemon.NeighborIPv4, testdaemon.NeighborIPv6} {
		addr := net.JoinHostPort(prefixes(a.endpoint("lan"))[i].Addr().String(), "80")
		want := prefixes(b.endpoint("lan"))[i].Addr().String()
		// IPv6 looks for another owner of the address first.
		keepTrying(t, func() error {
			if got := whoAmI(n.Do, "tcp", addr); got != near {
				return fmt.Errorf("from the neighbour: the site sees %q, want %q", got, near)
			}
			if got := whoAmI(b.from, "udp", addr); got != want {
				return fmt.Errorf("from another container: the site sees %q, want %q", got, want)
			}
			if got := callerOutside(t, n, near, want, b.from); got != want {
				return fmt.Errorf("a server outside sees %q, want %q", got, want)
			}
			return nil
		})
		if got := whoAmI(d.InNetNS, "tcp", addr); got != "" {
			t.Errorf("the host reaches a macvlan of its own interface, as %q", got)
		}
	}
	a.stop()
	b.stop()
	runLines(t, docker, []docked{
		{"rm -f aa bb", false, ""},
		{"network rm lan", false, ""},
		{"network create -d macvlan --internal -o parent=up0 -o macvlan_mode=private --subnet 10.99.0.0/24 lan", false, ""},
		{"run --rm --network lan busybox ip route", false, "10.99.0.0/24"},
		{"network rm lan", false, ""},
		{"network create -d macvlan -o parent=up0 -o macvlan_mode=passthru --subnet 10.99.0.0/24 lan", false, ""},
		{"run -d --name one --network lan busybox sleep 6000", false, ""},
		{"run --rm --network lan busybox true", true, "in mode passthru"},
		{"rm -f one", false, ""},
		{"network rm lan", false, ""},
	})
	for _, mode := range []string{"l2", "l3", "l3s"} {
		t.Run("ipvlan-"+mode, func(t *testing.T) {
			out, err := docker("network create -d ipvlan -o parent=up0 -o ipvlan_mode=" + mode + " --subnet 10.99.0.0/24 --gateway 10.99.0.2 lan")
			if strings.Contains(out, "this kernel has no ipvlan interfaces") {
				t.Skip(out)
			}
			if err != nil {
				t.Fatal(out, err)
			}
			a := newSite(t, d, "ii", "lan")
			n.Route(a.endpoint("lan").IPAddress.String() + "/32")
			if got := expect("any", n.Do, "tcp", net.JoinHostPort(a.endpoint("lan").IPAddress.String(), "80")); got != testdaemon.NeighborIPv4 {
				t.Errorf("from the neighbour: the site sees %q", got)
			}
			runLines(t, docker, []docked{{"rm -f ii", false, ""}, {"network rm lan", false, ""}})
		})
	}
	t.Run("vlan", func(t *testing.T) {
		out, err := docker("network create -d macvlan -o parent=up0.100 --subnet 10.97.0.0/24 tagged")
		if strings.Contains(out, "this kernel has no VLANs") {
			t.Skip(out)
		}
		if err != nil {
			t.Fatal(out, err)
		}
		runLines(t, docker, []docked{
			{"run --rm --network host busybox ip -d link show up0.100", false, "id 100"},
			{"run --rm --network tagged busybox ip addr show eth0", false, "10.97.0."},
			{"network rm tagged", false, ""},
			{"run --rm --network host busybox ip link show up0.100", true, ""},
		})
	})
	if links := d.Links(); len(links) > 3 { // lo, up0, the default bridge
		t.Errorf("interfaces after all: %v", links)
	}
}
