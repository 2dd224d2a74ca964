package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testdaemon"
)

// soak makes these tests as long as the promises are: make soak.
var soak = flag.Bool("soak", false, "500 containers and 10,000 cycles instead of a few")

// pss is the memory that a process has for itself, in kB.
func pss(t *testing.T, pid int) (kB int) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "Pss:") {
			fmt.Sscanf(line, "Pss: %d kB", &kB)
		}
	}
	return kB
}

// vars is what minked says about itself with --debug.
func vars(t *testing.T, d *testdaemon.Daemon) (goroutines int, heap int64) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialUnix(d.Socket)(ctx, "", "") }, DisableKeepAlives: true}}
	resp, err := c.Get("http://minked/debug/vars?gc=1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var out struct {
		Goroutines int
		Memstats   struct{ HeapAlloc int64 }
	}
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out.Goroutines, out.Memstats.HeapAlloc
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}

func TestSoakManyContainersCostLittleEach(t *testing.T) {
	n, slack := 20, 3000 // kB, of a heap that has grown once
	if *soak {
		n, slack = 500, 0
	}
	d := testdaemon.Start(t, "--debug")
	first := d.RunDetached(testdaemon.Spec{Config: cmd("sleep", "6000")}) // what is needed once
	vars(t, d)                                                            // collects garbage
	before := pss(t, d.Pid())
	var starts []time.Duration
	ids := []string{first}
	for range n {
		id := d.Create(testdaemon.Spec{Config: cmd("sleep", "6000")})
		ids = append(ids, id)
		begun := time.Now()
		if _, err := d.ContainerStart(t.Context(), id, client.ContainerStartOptions{}); err != nil {
			t.Fatal(err)
		}
		starts = append(starts, time.Since(begun))
	}
	vars(t, d)
	growth := pss(t, d.Pid()) - before
	var lists []time.Duration
	for range 9 {
		begun := time.Now()
		list, err := d.ContainerList(t.Context(), client.ContainerListOptions{})
		if err != nil || len(list.Items) != n+1 {
			t.Fatalf("list = %d containers, %v; want %d", len(list.Items), err, n+1)
		}
		lists = append(lists, time.Since(begun))
	}
	early, late, list := median(starts[:10]), median(starts[n-10:]), median(lists)
	t.Logf("%d containers: start %v first, %v last; list %v; minked grew by %d kB, %d kB each; its monitor has %d kB", n, early, late, list, growth, growth/n, pss(t, d.Monitor()))
	if late > 2*early+20*time.Millisecond {
		t.Errorf("the last start took %v, the first %v; want at most twice as much", late, early)
	}
	if list > 50*time.Millisecond {
		t.Errorf("list took %v, want at most 50ms", list)
	}
	if growth > 40*n+slack {
		t.Errorf("minked grew by %d kB, want at most 40 kB a container", growth)
	}
}

func TestSoakCyclesLeaveNothing(t *testing.T) {
	warm, n := 40, 60
	if *soak {
		warm, n = 1000, 9000
	}
	d := testdaemon.Start(t, "--debug")
	cycle := func(times int) {
		for i := range times {
			id := d.Create(testdaemon.Spec{Config: cmd("true"), Host: container.HostConfig{NetworkMode: []container.NetworkMode{"none", "bridge"}[i%2]}})
			if _, err := d.ContainerStart(t.Context(), id, client.ContainerStartOptions{}); err != nil {
				t.Fatal(err)
			}
			if _, err := d.ContainerRemove(t.Context(), id, client.ContainerRemoveOptions{Force: true}); err != nil {
				t.Fatal(err)
			}
		}
	}
	state := func() map[string]int {
		goroutines, heap := vars(t, d)
		mounts, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			t.Fatal(err)
		}
		c := count(t, d)
		return map[string]int{
			"goroutines": goroutines, "descriptors": c["descriptors"], "monitor's descriptors": c["monitor's"], "mounts": strings.Count(string(mounts), d.Dir),
			"heap in kB": int(heap >> 10), "kB": pss(t, d.Pid()), "monitor's kB": pss(t, d.Monitor()),
		}
	}
	cycle(warm)
	begun, before := time.Now(), state()
	cycle(n)
	took, after := time.Since(begun).Round(time.Millisecond), state()
	t.Logf("%d cycles in %v: %v before, %v after", n, took, before, after)
	// What a heap and a pool of connections may differ by from one moment to another.
	more := map[string]int{"goroutines": 5, "descriptors": 5, "monitor's descriptors": 5, "heap in kB": 1024, "kB": 6000, "monitor's kB": 2500}
	for what, now := range after {
		if now > before[what]+more[what] {
			t.Errorf("%s: %d before, %d after %d cycles", what, before[what], now, n)
		}
	}
}
