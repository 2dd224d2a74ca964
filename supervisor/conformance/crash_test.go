package conformance

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	cerrdefs "github.com/containerd/errdefs"
)

// dead reports whether a process has ended, collected or not.
func dead(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || bytes.Contains(stat, []byte(") Z "))
}

// crashing is release n: web has another image each time and is replaced in a
// way, db has another variable and a volume.
func crashing(strategy string, n int) string {
	labels := obj{"io.balena.update.strategy": strategy, "io.balena.update.handover-timeout": "300", "io.balena.features.supervisor-api": "1"}
	return target(nil, fleetApp(fmt.Sprintf("c%d", n), func(a *app) {
		a.services["web"] = service(91, fmt.Sprintf("garden:c%d", n), obj{"labels": labels, "depends_on": []string{"db"}})
		a.services["db"] = service(92, "garden:1", obj{"volumes": []string{"data:/data"}, "environment": obj{"N": fmt.Sprint(n)}})
		a.networks = obj{"default": obj{"labels": obj{"v": fmt.Sprint(n / 4)}}} // a new one now and then
	}))
}

// copies are the running containers of a service that are not on their way out.
func (d *device) copies(service string) (n int) {
	for _, c := range d.containers(service) {
		if c.State.Running && c.Name[:5] != "/old_" {
			n++
		}
	}
	return n
}

// arrived reports whether a release runs and nothing is left to do. There are
// never two copies of a service on the way.
func (d *device) arrived(commit string) bool {
	d.t.Helper()
	for _, s := range []string{"web", "db"} {
		if n := d.copies(s); n > 1 {
			d.t.Errorf("%d copies of %s run", n, s)
		}
	}
	s := d.status()
	return s.AppState == "applied" && s.Release == commit && d.copies("web") == 1 && d.copies("db") == 1
}

// An update is a number of requests to the engine. minked dies before and after
// each of them in turn, and the next one brings the update to its end. Where
// time is short it dies a third as often, and of two strategies that are much alike
// not at the same requests.
func TestDeathAtEachStepOfAnUpdate(t *testing.T) {
	t.Parallel()
	stride := 3
	if os.Getenv("MINKE_TEST_DOCKER") != "" { // who has minutes
		stride = 1
	}
	for i, strategy := range []string{"download-then-kill", "kill-then-download", "delete-then-download", "hand-over"} {
		t.Run(strategy, func(t *testing.T) {
			t.Parallel()
			d := start(t, setup{managed: true, wants: crashing(strategy, 0)})
			defer d.empty()
			d.settled("c0")
			d.sh("db", "echo kept >/data/x")
			for n := 1; d.diesInUpdate(strategy, n, 1+i%stride+(n-1)*stride); n++ {
				d.until("the update has come to its end", func() bool { return d.arrived(fmt.Sprintf("c%d", n)) })
				d.is("GET", "/v2/locks", "", 200, `{"status":"success","locks":[]}`)
				if d.container("web").Name != fmt.Sprintf("/web_5091_778_c%d", n) || env(d.container("db"))["N"] != fmt.Sprint(n) || d.sh("db", "cat /data/x") != "kept" {
					t.Fatalf("after death in update %d: web is %s, db has %v and %q in its volume", n, d.container("web").Name, env(d.container("db")), d.sh("db", "cat /data/x"))
				}
				if n > 100 {
					t.Fatal("an update has no end")
				}
			}
		})
	}
}

// diesInUpdate updates to release n with a minked that dies before or after a
// request, and starts another. Half of at, counted from 1, is the request. It
// returns false if there were fewer.
func (d *device) diesInUpdate(strategy string, n, at int) bool {
	d.t.Helper()
	d.down()
	d.host.Prepare = func(c *exec.Cmd) { c.Env = append(os.Environ(), fmt.Sprintf("MINKE_DIE_AT=request-%d", at)) }
	d.up()
	pid := d.host.Pid()
	defer func() {
		d.host.Kill() // or collects it
		d.host.Prepare = nil
		d.up()
	}()
	d.wants(crashing(strategy, n))
	d.call("POST", "/v1/update", `{}`) // it may be dead before it answers
	for deadline := time.Now().Add(patience); !dead(pid) && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		// The last that is done is to remove the image of the release before.
		before := d.images.fill(fmt.Sprintf("REGISTRY/garden:c%d", n-1))
		if _, err := d.engine.ImageInspect(d.t.Context(), before); !cerrdefs.IsNotFound(err) || !d.runs(n) {
			continue
		}
		d.t.Logf("an update is fewer than %d requests", (at+1)/2)
		if at < 16 {
			d.t.Error("want 8 at least")
		}
		return false
	}
	return true
}

// runs reports whether release n is said to run.
func (d *device) runs(n int) bool {
	_, body := d.call("GET", "/v2/state/status", "")
	return strings.Contains(body, `"appState":"applied"`) && strings.Contains(body, fmt.Sprintf(`"release":"c%d"`, n))
}
