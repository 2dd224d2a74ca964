//go:build linux

package testdaemon

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// A Neighbor is another host, made of a network namespace, on a cable to the
// daemon's host.
type Neighbor struct {
	netns *os.File
	t     testing.TB
}

// Addresses on the cable. It is the interface "up0" on both hosts.
const (
	HostIPv4, HostIPv6         = "10.99.0.1", "fd99::1"
	NeighborIPv4, NeighborIPv6 = "10.99.0.2", "fd99::2"
)

// Neighbor puts a host beside that of the daemon until the test ends.
func (d *Daemon) Neighbor() *Neighbor {
	d.t.Helper()
	ns, err := newNetNS()
	if err != nil {
		d.t.Fatal(err)
	}
	n := &Neighbor{ns, d.t}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "up0"
	err = inNetNS(d.netns, func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "up0", PeerNamespace: netlink.NsFd(int(ns.Fd()))}); err != nil {
			return err
		}
		return addressUp(HostIPv4+"/24", HostIPv6+"/64")
	})
	if err == nil {
		err = n.Do(func() error { return addressUp(NeighborIPv4+"/24", NeighborIPv6+"/64") })
	}
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		err := inNetNS(d.netns, func() error {
			l, err := netlink.LinkByName("up0")
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		})
		if err != nil {
			d.t.Error(err)
		}
		ns.Close()
	})
	return n
}

func addressUp(addrs ...string) error {
	link, err := netlink.LinkByName("up0")
	if err != nil {
		return err
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		if strings.Contains(a, ":") {
			addr.Flags = 2 // IFA_F_NODAD: usable at once
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

// Do runs f on the neighbour's network.
func (n *Neighbor) Do(f func() error) error { return inNetNS(n.netns, f) }

// Dial connects from the neighbour.
func (n *Neighbor) Dial(network, addr string, timeout time.Duration) (c net.Conn, err error) {
	err = n.Do(func() error {
		// Literal addresses only: a name would be looked up on another thread.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		c, err = (&net.Dialer{Timeout: timeout}).DialContext(context.Background(), network, addr)
		return err
	})
	return c, err
}

// Route sends the neighbour's packets for a subnet to the daemon's host.
func (n *Neighbor) Route(subnet string) {
	n.t.Helper()
	dst, err := netlink.ParseIPNet(subnet)
	if err != nil {
		n.t.Fatal(err)
	}
	gw := net.ParseIP(HostIPv4)
	if dst.IP.To4() == nil {
		gw = net.ParseIP(HostIPv6)
	}
	if err := n.Do(func() error { return netlink.RouteReplace(&netlink.Route{Dst: dst, Gw: gw}) }); err != nil {
		n.t.Fatal(err)
	}
}

// InContainer runs f on the network of a container.
func (d *Daemon) InContainer(id string, f func() error) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", d.Inspect(id).State.Pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	return inNetNS(ns, f)
}
