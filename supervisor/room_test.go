package supervisor_test

import (
	"testing"

	"github.com/moby/moby/api/types/jsonstream"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/supervisor"
)

// A Docker that keeps images on a disk of 64 MB says, as it begins, that a layer
// has 40 MB. It would download them and fail as it unpacks.
func TestAnImageThatDoesNotFitIsNotPulledByADocker(t *testing.T) {
	testenv.NeedRoot(t)
	t.Parallel()
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	engine := newFake()
	m := manage(t, release("c1", "garden:1", "", ""), supervisor.Config{Engine: engine})
	m.until("the first release has settled", func() bool { return m.f.Reported("apps", "aaaa", "release_uuid") == "c1" })
	const mb = 1 << 20
	progress := func(have int64) *jsonstream.Progress { return &jsonstream.Progress{Current: have, Total: 40 * mb} }
	engine.mu.Lock()
	engine.root = root
	engine.progress = []jsonstream.Message{
		{ID: "aa", Status: "Pulling fs layer"}, {ID: "bb", Status: "Already exists"},
		{ID: "aa", Status: "Downloading", Progress: progress(mb)}, {ID: "aa", Status: "Download complete"},
		{ID: "aa", Status: "Extracting", Progress: progress(20 * mb)}, {ID: "aa", Status: "Pull complete"},
	}
	engine.mu.Unlock()
	m.f.Wants(release("c2", "garden:2", "", ""))
	m.update()
	m.until("people learn why", func() bool {
		return m.f.Heard("download image garden:2: no space left on device: at least 79 MB more are needed, and 64 MB are free below " + root)
	})
	if got := m.running(); got["web"] != "garden:1" || got["db"] != "garden:1" {
		t.Errorf("running = %v without room for the next release, want what ran", got)
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", unix.MS_REMOUNT, "size=100m"); err != nil {
		t.Fatal(err)
	}
	m.until("the release runs when there is room", func() bool { return m.running()["web"] == "garden:2" && m.running()["db"] == "garden:2" })
}
