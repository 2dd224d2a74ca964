package main

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testdaemon"
	"github.com/minke-os/minke/internal/testenv"
)

// A cable joins the networks of a device and of a registry's host.
type cable struct {
	device, far *testdaemon.Daemon
	name        string // of both ends
	at          string // the registry's address on it
}

func connect(t *testing.T, device, far *testdaemon.Daemon, number int) *cable {
	t.Helper()
	c := &cable{device: device, far: far, name: fmt.Sprint("line", number), at: registryAt(number)}
	c.ip(t, far, "link add "+c.name+" type veth peer name end"+c.name)
	c.ip(t, far, fmt.Sprintf("link set end%s netns %d name %s", c.name, device.Pid(), c.name))
	t.Cleanup(func() { c.ip(t, far, "link del "+c.name) })
	c.ip(t, far, "addr add "+c.at+"/24 dev "+c.name)
	c.ip(t, device, fmt.Sprintf("addr add 10.77.%d.2/24 dev %s", number, c.name))
	c.ip(t, far, "link set "+c.name+" up")
	c.ip(t, device, "link set "+c.name+" up")
	return c
}

func registryAt(number int) string { return fmt.Sprintf("10.77.%d.1", number) }

func (c *cable) ip(t *testing.T, at *testdaemon.Daemon, args string) {
	t.Helper()
	c.run(t, at, "ip "+args)
}

func (c *cable) run(t *testing.T, at *testdaemon.Daemon, command string) {
	t.Helper()
	f := strings.Fields(command)
	if out, err := at.Command(context.Background(), testenv.Need(t, f[0]), f[1:]...); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
}

// thin lets 100 kB through in a second, towards the device.
func (c *cable) thin(t *testing.T) {
	t.Helper()
	c.run(t, c.far, "tc qdisc add dev "+c.name+" root tbf rate 800kbit burst 4kb latency 100ms")
}

// cut takes the line away with all connections on it, and brings it back.
func (c *cable) cut(t *testing.T) {
	t.Helper()
	c.ip(t, c.device, "link set "+c.name+" down")
	c.run(t, c.device, "ss -K dst "+c.at)
	c.ip(t, c.device, "link set "+c.name+" up")
}

// received is how many bytes came over the line to the device.
func (c *cable) received(t *testing.T) (n int) {
	t.Helper()
	out, err := c.far.Command(t.Context(), testenv.Need(t, "tc"), "-s", "qdisc", "show", "dev", c.name)
	if err != nil {
		t.Fatalf("tc: %v: %s", err, out)
	}
	_, sent, _ := strings.Cut(out, "Sent ")
	if _, err := fmt.Sscan(sent, &n); err != nil {
		t.Fatalf("tc says %q", out)
	}
	return n
}

// pull pulls an image and cuts the line when so many bytes of something have
// come, as the progress says.
func (c *cable) pull(t *testing.T, image string, cuts ...int64) {
	t.Helper()
	r, err := c.device.ImagePull(t.Context(), image, client.ImagePullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for m, err := range r.JSONMessages(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if m.Error != nil {
			t.Fatalf("pull %s: %v", image, m.Error)
		}
		if len(cuts) > 0 && m.Progress != nil && m.Status == "Downloading" && m.Progress.Current > cuts[0] {
			cuts = cuts[1:]
			c.cut(t)
		}
	}
	if len(cuts) > 0 {
		t.Errorf("pull %s: nobody heard of %d bytes", image, cuts[0])
	}
}

// Two versions of an application are in a registry, and a delta beside the
// second. Devices pull that over a line with 100 kB/s that is cut twice.
func TestUpdateOverAThinLine(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"ip", "tc", "ss"} {
		testenv.Need(t, tool)
	}
	cloud := testdaemon.Start(t)
	registry := startRegistry(t, cloud)
	program := randomBytes(1, 120_000)
	contents := func(version string, more map[string][]byte) map[string][]byte {
		files := map[string][]byte{"app/program": append([]byte(version), program...), "app/version": []byte(version + "\n")}
		for name, data := range more {
			files[name] = data
		}
		return files
	}
	const fresh = 220_000
	versions := map[string]map[string][]byte{
		"one":   contents("one", nil),
		"two":   contents("two", map[string][]byte{"app/new": randomBytes(2, fresh/2), "app/newer": randomBytes(3, fresh/2)}),
		"three": contents("three", map[string][]byte{"app/new": randomBytes(4, fresh)}),
		// Another image that has the same program, at another place.
		"other": {"opt/tool": append([]byte("one"), program...), "opt/notes": []byte("nothing\n")},
	}
	for tag, files := range versions {
		putFiles(t, cloud, registry+"/app:"+tag, files)
		pushImage(t, cloud, registry+"/app:"+tag)
	}
	one, two := registry+"/app:one", registry+"/app:two"
	if out := post(t, cloud, "/minke/delta?"+url.Values{"base": {one}, "target": {two}, "push": {two}}.Encode()); !strings.Contains(out, "digest: sha256:") {
		t.Fatalf("POST /minke/delta says %s", out)
	}
	tests := []struct {
		name, from, to string
		most           int // bytes on the line
	}{
		{"the-same-base", "one", "two", fresh + 70_000},
		{"another-base", "other", "two", fresh + 70_000},
		{"no-delta", "one", "three", fresh + len(program) + 70_000},
	}
	var devices sync.WaitGroup
	for i, tt := range tests {
		devices.Go(func() { // at once, for they do little but wait for their lines
			t.Run(tt.name, func(t *testing.T) {
				device := testdaemon.Start(t, "--insecure-registry", registryAt(i)+":5000")
				line := connect(t, device, cloud, i)
				image := line.at + ":5000/app:"
				line.pull(t, image+tt.from)
				line.thin(t)
				began := time.Now()
				line.pull(t, image+tt.to, 80_000, 120_000)
				took, came := time.Since(began), line.received(t)
				t.Logf("%d bytes came in %s", came, took.Round(time.Millisecond))
				if came < fresh || came > tt.most {
					t.Errorf("%d bytes came over the line, want %d to %d", came, fresh, tt.most)
				}
				if least := time.Duration(fresh) * time.Second / 100_000; took < least {
					t.Errorf("it took %s, less than %d bytes do on this line", took, fresh)
				}
				if n := strings.Count(device.Log(), "will try again"); n < 2 {
					t.Errorf("the log tells of %d breaks, want two", n)
				}
				c := sh("cat /app/version; md5sum /app/* | md5sum")
				c.Image = image + tt.to
				got, errs, _ := device.Run(testdaemon.Spec{Config: c})
				c.Image = registry + "/app:" + tt.to
				want, _, _ := cloud.Run(testdaemon.Spec{Config: c})
				if got != want || !strings.HasPrefix(got, tt.to+"\n") {
					t.Errorf("the new version prints %q %s, want %q", got, errs, want)
				}
			})
		})
	}
	devices.Wait()
}
