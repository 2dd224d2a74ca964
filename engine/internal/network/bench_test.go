package network

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/types/network"
	"go.etcd.io/bbolt"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/testenv"
)

// openAway opens a Host whose bridges and rules are in a network namespace of
// their own. The sockets that hold published ports are where the test runs.
func openAway(b *testing.B, networks ...network.CreateRequest) (h *Host, ids []string) {
	b.Helper()
	testenv.NeedRoot(b)
	db, err := bbolt.Open(filepath.Join(b.TempDir(), "db"), 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			h, err = Open(b.Context(), db, Options{Bridge: "bench0", IPv6: true, Logger: slog.New(slog.DiscardHandler)})
		}
		for _, r := range networks {
			var n network.Network
			if err == nil {
				n, _, err = h.Create(b.Context(), r)
				ids = append(ids, n.ID)
			}
		}
		done <- err
	}()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { h.Close(); db.Close() })
	return h, ids
}

// sleeper is a process in a network namespace of its own until the end.
func sleeper(b *testing.B) (pid int) {
	b.Helper()
	c := exec.Command("sleep", "1000")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := c.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Process.Kill(); c.Wait() })
	return c.Process.Pid
}

func sandboxOf(i, pid int, netID string) Sandbox {
	tcp, _ := network.PortFrom(80, network.TCP)
	return Sandbox{
		ContainerID: fmt.Sprintf("%064d", i), Name: fmt.Sprint("c", i), Pid: pid,
		Endpoints: []Endpoint{{Network: netID, Settings: &network.EndpointSettings{Aliases: []string{"all"}}}},
		Ports:     network.PortMap{tcp: {{}}},
	}
}

// BenchmarkJoin connects a container to a network on which there are others,
// with IPv4, IPv6, name service and a published port for both families, and
// takes it away again.
func BenchmarkJoin(b *testing.B) {
	for _, others := range []int{0, 200} {
		b.Run(fmt.Sprint("beside-", others), func(b *testing.B) {
			v6 := true
			h, ids := openAway(b, network.CreateRequest{Name: "many", EnableIPv6: &v6})
			for i := range others {
				join(b, h, i, ids[0])
			}
			var cpu, wall time.Duration
			for i := range b.N {
				pid := sleeper(b)
				start, before := time.Now(), cpuTime()
				if _, err := h.Join(b.Context(), sandboxOf(1000+i, pid, ids[0])); err != nil {
					b.Fatal(err)
				}
				cpu, wall = cpu+cpuTime()-before, wall+time.Since(start)
				if err := h.Leave(b.Context(), sandboxOf(1000+i, 0, "").ContainerID); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(cpu.Microseconds())/1000/float64(b.N), "ms-cpu/join")
			b.ReportMetric(float64(wall.Microseconds())/1000/float64(b.N), "ms/join")
		})
	}
}

// join has a container on the network until the end.
func join(b *testing.B, h *Host, i int, netID string) (pid int) {
	b.Helper()
	pid = sleeper(b)
	if _, err := h.Join(b.Context(), sandboxOf(i, pid, netID)); err != nil {
		b.Fatal(err)
	}
	return pid
}

func cpuTime() time.Duration {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkName asks for a container's name from within another one's network,
// with 200 on it.
func BenchmarkName(b *testing.B) {
	h, ids := openAway(b, network.CreateRequest{Name: "many"})
	first := join(b, h, 0, ids[0])
	for i := range 199 {
		join(b, h, i+1, ids[0])
	}
	ns, err := openNamespace(first)
	if err != nil {
		b.Fatal(err)
	}
	defer ns.close()
	var conn net.Conn
	err = inNamespace(ns.fd, func() (err error) {
		conn, err = net.Dial("udp", netip.AddrPortFrom(resolverAddr, 53).String())
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	q, buf := query(b, "c150."), make([]byte, 512)
	var all []time.Duration
	for b.Loop() {
		start := time.Now()
		conn.Write(q)
		conn.SetDeadline(start.Add(5 * time.Second))
		size, err := conn.Read(buf)
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, time.Since(start))
		var m dnsmessage.Message
		if m.Unpack(buf[:size]) != nil || len(m.Answers) != 1 {
			b.Fatal("no answer")
		}
	}
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), "µs-median")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "µs-p99")
}
