package supervisor_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/minke-os/minke/internal/testfleet"
	"github.com/minke-os/minke/supervisor"
)

// preloaded is a device that starts with an apps.json. f is its server, which
// may be nil.
func preloaded(t *testing.T, apps string, f *testfleet.Fleet) *managed {
	t.Helper()
	m := &managed{f: f, engine: newFake("garden:1"), dir: t.TempDir(), boot: t.TempDir(), tmp: t.TempDir()}
	config := `{}`
	if f != nil {
		config = fmt.Sprintf(`{"apiEndpoint":%q,"apiKey":"provisioning","applicationId":5}`, f.URL)
	}
	preload := filepath.Join(m.dir, "apps.json")
	for path, text := range map[string]string{filepath.Join(m.boot, "config.json"): config, preload: apps} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m.device = startWith(t, supervisor.Config{Engine: m.engine, Dir: m.dir, HostTmp: m.tmp, BootDir: m.boot, Preload: preload})
	m.global = m.stored().GlobalKey
	return m
}

func TestOlderFormsOfWhatCameWithTheMediumStart(t *testing.T) {
	for name, apps := range map[string]string{
		"version 2": `{"config":{},"apps":{"5":{"name":"garden","commit":"c1","releaseId":10,"services":{"1":{"serviceName":"web","imageId":11,"image":"garden:1"}},"volumes":{},"networks":{}}}}`,
		"legacy":    `[{"appId":5,"name":"garden","commit":"c1","imageId":"garden:1","env":{},"config":{}}]`,
	} {
		t.Run(name, func(t *testing.T) {
			m := preloaded(t, apps, nil)
			m.until("it runs", func() bool { return len(m.running()) == 1 })
			if _, err := os.Stat(filepath.Join(m.dir, "apps.json.preloaded")); err != nil {
				t.Error(err)
			}
		})
	}
}

// An old form does not know its application's UUID. Once the server has said
// it, the same application goes on under it.
func TestAnOlderFormIsTakenOverByTheServersTarget(t *testing.T) {
	t.Parallel() // reports are ten seconds apart
	f := testfleet.Start(t, nil)
	f.Wants(strings.Replace(release("c1", "garden:1", "", ""), `"id":1,"name":"garden"`, `"id":5,"name":"garden"`, 1))
	m := preloaded(t, `{"config":{},"apps":{"5":{"name":"garden","commit":"c1","releaseId":10,"services":{"1":{"serviceName":"web","imageId":11,"image":"garden:1"}},"volumes":{},"networks":{}}}}`, f)
	m.engine.mu.Lock()
	m.engine.registry["shed:1"] = true
	m.engine.mu.Unlock()
	m.until("the server's target runs", func() bool { return len(m.running()) == 3 })
	m.until("the server knows the release", func() bool { return f.Reported("apps", "aaaa", "release_uuid") == "c1" })
	if f.Reported("apps", "5") != nil {
		t.Error("the server is told of an application by a UUID that it does not know")
	}
}

func TestADeviceThatIsPinnedStaysInTheReleaseItCameWith(t *testing.T) {
	t.Parallel() // reports are ten seconds apart
	const apps = `{"config":{},"pinDevice":true,"apps":{"aaaa":{"id":1,"name":"garden","releases":{%q:{"id":10,"services":{
	 "web":{"id":1,"image_id":11,"image":"garden:1","environment":{},"labels":{},"composition":{}}}}}}}}`
	for commit, want := range map[string][]string{"c1": {"10 before poll 0"}, "unknown": nil} {
		t.Run(commit, func(t *testing.T) {
			f := testfleet.Start(t, nil)
			f.Wants(`{"UUID":{"name":"porch","config":{},"apps":{}}}`)
			m := preloaded(t, fmt.Sprintf(apps, commit), f)
			m.until("the server was asked for a target", func() bool { return len(f.Polls()) > 0 })
			if !slices.Equal(f.Pinned(), want) {
				t.Errorf("pinned to release %q, want %q", f.Pinned(), want)
			}
			raw, err := os.ReadFile(filepath.Join(m.dir, "device.json"))
			if err != nil || strings.Contains(string(raw), `"pin"`) {
				t.Errorf("device.json = %s, %v, want no pin any more", raw, err)
			}
			if commit == "unknown" {
				m.until("people learn that it follows its fleet", func() bool { return f.Heard("does not stay in release unknown") })
			}
		})
	}
}
