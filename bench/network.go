package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/thread"
)

// The ways that "bench network" measures. The neighbor is another host: a network
// namespace at the end of a cable.
var ways = []way{
	{"host to container, by its address", host, containerA, byAddress},
	{"container to host", containerA, host, byAddress},
	{"container to container", containerA, containerB, byAddress},
	{"neighbor to a published port", neighbor, containerA, byPort},
	{"container to neighbor", containerA, neighbor, byAddress},
	{"host to a published port, by 127.0.0.1", host, containerA, byLoopback},
}

type way struct {
	name     string
	from, to where
	by       by
}

// where one end of a connection is.
type where int

const (
	host where = iota
	neighbor
	containerA
	containerB
	ends
)

// by says which address leads to the other end.
type by int

const (
	byAddress by = iota
	byPort
	byLoopback
)

const (
	stream        = time.Second            // how long a connection sends
	calling       = 500 * time.Millisecond // how long connections are made, one after the other
	networkPort   = 5001                   // in the containers, and published
	hostAddress   = "192.168.231.1"        // the engine's host at the neighbor's cable
	neighborHost  = "192.168.231.2"
	cable         = "neighbor"
	figureStream  = "stream, Gbit/s"
	figureSpent   = "processor for a GB, ms"
	figureConnect = "connections/s"
)

// A testbed is an engine's host with two containers and a neighbor.
type testbed struct {
	ns   [ends]*os.File
	addr [ends]string
}

// A networkResult has the figures by way, kind and engine.
type networkResult struct {
	result
	Figures map[string]map[string]map[string][]float64 `json:"figures"`
}

// runNetwork compares how fast containers reach others and are reached.
func (r *runner) runNetwork(ctx context.Context, names []string, out string) (err error) {
	if err := r.begin(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.remove()) }()
	if err := r.prepare(ctx); err != nil {
		return err
	}
	defer func() {
		for _, e := range r.engines {
			err = errors.Join(err, e.close())
		}
	}()
	beds := map[string]*testbed{}
	for _, name := range names {
		if err := r.start(ctx, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for _, e := range r.engines {
		bed, err := e.testbed(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
		defer bed.close()
		beds[e.name] = bed
	}
	res := &networkResult{result: *newResult(r), Figures: map[string]map[string]map[string][]float64{}}
	for n := range r.rounds {
		for _, w := range ways {
			for i := range r.engines {
				e := r.engines[(i+n)%len(r.engines)] // nobody is always the first
				if err := beds[e.name].measure(ctx, w, func(figure string, v float64) { res.add(w.name, figure, e.name, v) }); err != nil {
					return fmt.Errorf("%s: %s: %w", e.name, w.name, err)
				}
			}
		}
		fmt.Fprintf(os.Stderr, "bench: round %d of %d\n", n+1, r.rounds)
	}
	if err := keep(out, res.When, "-network", res); err != nil {
		return err
	}
	return res.print(os.Stdout)
}

// testbed starts the containers and lays the cable.
func (e *engine) testbed(ctx context.Context) (*testbed, error) {
	b := &testbed{}
	var err error
	if b.ns[host], err = os.Open(fmt.Sprintf("/proc/self/fd/%d", e.place.netns.Fd())); err != nil {
		return b, err
	}
	for i, end := range []where{containerA, containerB} {
		name := fmt.Sprint("end", i)
		flags := []string{"-d", "--name", name}
		if end == containerA {
			flags = append(flags, "-p", fmt.Sprintf("%d:%[1]d", networkPort))
		}
		if _, err := e.command(ctx, append(e.runWith(flags...), image, "sleep", "100000")...); err != nil {
			return b, err
		}
		out, err := e.command(ctx, "inspect", "-f", "{{.State.Pid}} {{.NetworkSettings.IPAddress}} {{.NetworkSettings.Gateway}}", name)
		if err != nil {
			return b, err
		}
		f := strings.Fields(out)
		if len(f) != 3 {
			return b, fmt.Errorf("container %s has no address: %q", name, out)
		}
		if b.ns[end], err = os.Open("/proc/" + f[0] + "/ns/net"); err != nil {
			return b, err
		}
		b.addr[end], b.addr[host] = f[1], f[2]
	}
	b.addr[neighbor] = neighborHost
	return b, b.lay()
}

// lay makes the neighbor's namespace and the cable to it.
func (b *testbed) lay() error {
	err := thread.Run(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			b.ns[neighbor], err = os.Open("/proc/thread-self/ns/net")
		}
		return err
	})
	if err != nil {
		return err
	}
	err = b.in(host, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = cable
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: cable, PeerNamespace: netlink.NsFd(b.ns[neighbor].Fd())}); err != nil {
			return err
		}
		return addressed(cable, hostAddress)
	})
	if err != nil {
		return err
	}
	return b.in(neighbor, func() error { return addressed(cable, neighborHost) })
}

func addressed(name, addr string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(addr), Mask: net.CIDRMask(24, 32)}}); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func (b *testbed) close() {
	for _, f := range b.ns {
		if f != nil {
			f.Close()
		}
	}
}

// in runs f in the network namespace of an end.
func (b *testbed) in(end where, f func() error) error {
	return thread.Run(func() error {
		if err := unix.Setns(int(b.ns[end].Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// measure sends over one connection for a second, then makes connections one
// after the other. Sender and receiver are here, the same for every engine; the
// processor time is what they and the kernel spend.
func (b *testbed) measure(ctx context.Context, w way, add func(figure string, v float64)) error {
	var l net.Listener
	err := b.in(w.to, func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprint("0.0.0.0:", networkPort))
		return err
	})
	if err != nil && w.to == host && errors.Is(err, syscall.EADDRINUSE) {
		// The engine holds the published port there.
		err = b.in(w.to, func() (err error) { l, err = net.Listen("tcp4", "0.0.0.0:0"); return err })
	}
	if err != nil {
		return err
	}
	defer l.Close()
	to := b.addr[w.to]
	switch w.by {
	case byPort:
		to = hostAddress
	case byLoopback:
		to = "127.0.0.1"
	}
	target := net.JoinHostPort(to, fmt.Sprint(l.Addr().(*net.TCPAddr).Port))
	received := make(chan int64)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(received)
				return
			}
			n, _ := io.Copy(io.Discard, c)
			c.Close()
			received <- n
		}
	}()
	dial := func() (c net.Conn, err error) {
		err = b.in(w.from, func() error { c, err = net.DialTimeout("tcp4", target, 5*time.Second); return err })
		return c, err
	}
	c, err := dial()
	if err != nil {
		return err
	}
	data := bytes.Repeat([]byte{'x'}, 128<<10)
	began, spent := time.Now(), busy()
	for time.Since(began) < stream && ctx.Err() == nil {
		if _, err := c.Write(data); err != nil {
			return err
		}
	}
	c.Close()
	n := <-received
	took := time.Since(began).Seconds()
	add(figureStream, float64(n)*8/1e9/took)
	add(figureSpent, (busy()-spent).Seconds()*1000/(float64(n)/1e9))
	calls := 0
	err = b.in(w.from, func() error {
		for began := time.Now(); time.Since(began) < calling && ctx.Err() == nil; calls++ {
			c, err := net.DialTimeout("tcp4", target, 5*time.Second)
			if err != nil {
				return err
			}
			c.(*net.TCPConn).SetLinger(0) // or all ports are waiting in the end
			c.Close()
			<-received
		}
		return ctx.Err()
	})
	add(figureConnect, float64(calls)/calling.Seconds())
	return err
}

// busy is the time that this machine's processors have worked: what the kernel
// does for packets is nobody's.
func busy() time.Duration {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	var user, nice, system, idle, wait, irq, softirq int64
	fmt.Sscanf(string(data), "cpu %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &wait, &irq, &softirq)
	return time.Duration(user+nice+system+irq+softirq) * (time.Second / 100) // USER_HZ
}

func (r *networkResult) add(way, figure, engine string, v float64) {
	if r.Figures[way] == nil {
		r.Figures[way] = map[string]map[string][]float64{}
	}
	if r.Figures[way][figure] == nil {
		r.Figures[way][figure] = map[string][]float64{}
	}
	r.Figures[way][figure][engine] = append(r.Figures[way][figure][engine], v)
}

func (r *networkResult) print(w io.Writer) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s; %s; medians of %d rounds; of streams and connections more is better.\n\n", r.When.Format(time.DateOnly), r.Machine, r.Rounds)
	for _, e := range r.Engines {
		fmt.Fprintf(&b, "- %s: %s\n", e, r.Versions[e])
	}
	head := []string{"way", "figure"}
	for _, e := range r.Engines {
		if e != "minke" {
			head = append(head, "of "+e+"'s")
		}
	}
	table(&b, append(head, r.Engines...))
	for _, way := range ways {
		for _, figure := range []string{figureStream, figureSpent, figureConnect} {
			r.row(&b, way.name, figure, func(e string) (float64, bool) {
				all := slices.Sorted(slices.Values(r.Figures[way.name][figure][e]))
				if len(all) == 0 {
					return 0, false
				}
				return (all[(len(all)-1)/2] + all[len(all)/2]) / 2, true
			})
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}
