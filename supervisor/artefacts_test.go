package supervisor_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"

	"github.com/minke-os/minke/supervisor"
	"github.com/minke-os/minke/supervisor/client"
)

func TestLeavingLocalModeRemovesWhatWasMadeThere(t *testing.T) {
	t.Parallel()
	m := manage(t, release("c1", "garden:1", "", ""), supervisor.Config{})
	ctx := t.Context()
	make := func(name string) {
		t.Helper()
		m.engine.has(t, name+":1")
		m.engine.mu.Lock()
		m.engine.images[name+":1"] = "sha256:" + strings.Repeat(name[:2], 32)
		m.engine.mu.Unlock()
		_, err1 := m.engine.ContainerCreate(ctx, client.ContainerCreateOptions{Name: name, Config: &container.Config{Image: name + ":1"}, HostConfig: &container.HostConfig{}})
		_, err2 := m.engine.VolumeCreate(ctx, client.VolumeCreateOptions{Name: name})
		_, err3 := m.engine.NetworkCreate(ctx, name, client.NetworkCreateOptions{})
		if err1 != nil || err2 != nil || err3 != nil {
			t.Fatal(err1, err2, err3)
		}
	}
	// names are of containers that no supervisor made, images, volumes and networks.
	names := func() (out []string) {
		m.engine.mu.Lock()
		defer m.engine.mu.Unlock()
		for _, c := range m.engine.containers {
			if c.Config.Labels["io.balena.supervised"] == "" {
				out = append(out, "container "+c.Name)
			}
		}
		for name := range m.engine.images {
			out = append(out, "image "+name)
		}
		for name := range m.engine.volumes {
			out = append(out, "volume "+name)
		}
		for name := range m.engine.networks {
			out = append(out, "network "+name)
		}
		slices.Sort(out)
		return out
	}
	make("aaold")
	before := names()

	m.f.Wants(release("c1", "garden:1", "", `"RESIN_SUPERVISOR_LOCAL_MODE":"1"`))
	m.update()
	m.until("the fleet's services are gone", func() bool { return len(m.running()) == 0 })
	m.is("POST", "/v2/local/target-state", target(testImage, "garden:3"), 200, `{"status":"success","message":"OK"}`)
	m.until("what was posted runs", func() bool { return m.running()["web"] == "garden:3" && m.running()["db"] == "garden:3" })
	make("bbtoy")

	m.f.Wants(release("c1", "garden:1", "", ""))
	m.is("POST", "/v1/update", `{}`, 204, "")
	m.until("the fleet's services run again", func() bool {
		return maps.Equal(m.running(), map[string]string{"web": "garden:1", "db": "garden:1", "tool": "shed:1"})
	})
	if got := names(); !slices.Equal(got, before) {
		t.Errorf("afterwards there are\n%q\nwant\n%q", got, before)
	}
	m.stop()
	if d := startWith(t, supervisor.Config{Engine: m.engine, Dir: m.dir, HostTmp: m.tmp, BootDir: m.boot}); len(m.running()) != 3 {
		t.Errorf("running = %v after a restart", m.running())
	} else {
		d.stop()
	}
	if got := names(); !slices.Equal(got, before) {
		t.Errorf("after a restart there are\n%q\nwant\n%q", got, before)
	}
}
