package conformance

import (
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDockerHasNoRoom gives a Docker a small disk and an image whose one layer
// fits on it once, but not twice.
func TestDockerHasNoRoom(t *testing.T) {
	needDocker(t)
	d := start(t, setup{docker: true, disk: "size=96m", managed: true, wants: target(nil, fleetApp("a1"))})
	defer d.empty()
	d.settled("a1")
	web := d.id("web")
	least := make(chan int64)
	stop := make(chan struct{})
	go func() { // how little there was
		low := int64(1) << 40
		for {
			var st unix.Statfs_t
			if unix.Statfs(filepath.Join(d.host.Dir, "docker/data"), &st) == nil {
				low = min(low, int64(st.Bavail)*int64(st.Bsize))
			}
			select {
			case <-stop:
				least <- low
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	d.deploy(target(nil, fleetApp("a2", func(a *app) { a.services["web"] = service(91, "huge:1", nil) })))
	d.until("people learn why", func() bool { return d.fleet.Heard("no space left on device: at least") })
	close(stop)
	if got := <-least; got < 20<<20 {
		t.Errorf("the disk was filled up to %d bytes", got)
	}
	if d.id("web") != web || d.state("web") != "running" {
		t.Errorf("web is %q in %s, was in %s", d.state("web"), d.id("web"), web)
	}
	d.deploy(target(nil, fleetApp("a3", func(a *app) { a.services["web"] = service(91, "garden:3", nil) })))
	d.settled("a3")
}
