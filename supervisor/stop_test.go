package supervisor_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minke-os/minke/internal/testdaemon"
	"github.com/minke-os/minke/supervisor/client"
)

// stopping is a target of services that differ in how they can be stopped.
func stopping(services map[string]string) string {
	var list []string
	for name, composition := range services {
		n := len(list) + 1
		list = append(list, fmt.Sprintf(`"%d":{"serviceName":"%s","serviceId":%[1]d,"imageId":%[1]d,"image":"%[3]s","environment":{},"labels":{},"tty":false,"volumes":["data:/data"],%[4]s}`, n, name, testImage, composition))
	}
	return `{"local":{"name":"bench","config":{},"apps":{"1":{"name":"localapp","commit":"c1","releaseId":"7","services":{` + strings.Join(list, ",") + `},"volumes":{"data":{}},"networks":{}}}}}`
}

func TestWhatHearsNoSignalIsStoppedAtOnce(t *testing.T) {
	d := testdaemon.Start(t)
	buildTestImage(t, d.Client)
	testStops(t, engineAt(t, d.DaemonHost()))
}

func TestWhatHearsNoSignalIsStoppedAtOnceByARealEngine(t *testing.T) { testStops(t, realEngine(t)) }

// A signal that process 1 cannot take is not waited for; whoever can take it, or
// has time by its composition, gets it.
func testStops(t *testing.T, engine *client.Client) {
	d := start(t, engine, t.TempDir(), t.TempDir())
	defer d.stop()
	defer engine.NetworkRemove(t.Context(), "supervisor0", client.NetworkRemoveOptions{})
	defer d.apply(empty)

	said := func(name string) bool {
		t.Helper()
		list, err := engine.VolumeList(t.Context(), client.VolumeListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range list.Items {
			if _, err := os.Stat(filepath.Join(v.Mountpoint, name)); v.Name == "1_data" && err == nil {
				return true
			}
		}
		return false
	}
	restart := func(services map[string]string, traps ...string) time.Duration {
		t.Helper()
		before := d.apply(stopping(services))
		for _, name := range traps {
			d.until(name+" has its trap", func() bool { return said(name + "-traps") })
		}
		began := time.Now()
		d.is("POST", "/v2/applications/1/restart", `{"force":true}`, 200, "OK")
		took := time.Since(began)
		after := d.settled()
		for name := range services {
			if after[name] == "" || after[name] == before[name] {
				t.Errorf("%s is in %q, was in %q", name, after[name], before[name])
			}
		}
		return took
	}

	const grace = 10 * time.Second // of who does not say
	took := restart(map[string]string{"one": `"command":"sleep 1000"`, "two": `"command":"sleep 1000"`})
	t.Logf("two services that sleep: %v from the request to their end and start", took)
	if took >= grace {
		t.Errorf("a restart of two services that sleep took %v, which is their grace", took)
	}

	trap := func(name, signal string) string {
		return fmt.Sprintf(`"command":["sh","-c","trap 'sleep 0.5; touch /data/%s-ends; exit' %s; touch /data/%[1]s-traps; while :; do sleep 0.1; done"]`, name, signal)
	}
	trapping := []string{"shell", "other", "child"}
	took = restart(map[string]string{
		"shell":    trap("shell", "TERM"),
		"other":    `"stop_signal":"SIGUSR1",` + trap("other", "USR1"),
		"child":    `"init":true,` + trap("child", "TERM"),
		"explicit": `"stop_grace_period":"3s","command":"sleep 1000"`,
	}, trapping...)
	for _, name := range trapping {
		if !said(name + "-ends") {
			t.Errorf("%s had no time to end", name)
		}
	}
	if took < 3*time.Second || took >= grace {
		t.Errorf("a restart of services of which one has a grace of 3 s took %v", took)
	}
}
