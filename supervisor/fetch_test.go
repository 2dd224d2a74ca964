package supervisor_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/supervisor"
	"github.com/minke-os/minke/supervisor/client"
)

func TestADownloadWaitsForRoomAndNothingIsLost(t *testing.T) {
	testenv.NeedRoot(t)
	t.Parallel()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	m := manage(t, release("c1", "garden:1", "", ""), supervisor.Config{Dir: dir})
	m.until("the first release has settled", func() bool { return m.f.Reported("apps", "aaaa", "release_uuid") == "c1" })
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 48<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	m.engine.mu.Lock()
	before := len(m.engine.containers)
	tries := 0
	m.engine.room = func() error {
		tries++
		if _, err := os.Stat(ballast); err == nil {
			return errors.New("layer 0123: no space left on device: at least 60 MB more are needed")
		}
		return nil
	}
	m.engine.images["old:1"] = "sha256:" + strings.Repeat("ab", 32) // that a person brought
	m.engine.mu.Unlock()

	m.f.Wants(release("c2", "garden:2", "", ""))
	m.update()
	m.until("people learn why", func() bool { return m.f.Heard("no space left on device: at least 60 MB more are needed") })
	if _, text := m.call("GET", "/v2/applications/state?apikey="+m.global, ""); !strings.Contains(text, `"error":"download image garden:2: layer 0123: no space left on device`) {
		t.Errorf("/v2/applications/state = %s, want the reason", text)
	}
	if got := m.running(); got["web"] != "garden:1" || got["db"] != "garden:1" {
		t.Errorf("running = %v without room for the next release, want what ran", got)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	m.until("the release runs when there is room", func() bool { return m.running()["web"] == "garden:2" && m.running()["db"] == "garden:2" })
	m.engine.mu.Lock()
	defer m.engine.mu.Unlock()
	if len(m.engine.containers) != before || m.engine.images["old:1"] == "" {
		t.Errorf("%d containers and images %v, want %d and what a person brought", len(m.engine.containers), m.engine.images, before)
	}
	if tries > 10 { // at first after 0.5, 1, 2 s …
		t.Errorf("%d attempts, want few while nothing changes", tries)
	}
}

// A quiet engine remembers what was pulled of it, and whether two at once were.
type quiet struct {
	*fake

	mu     sync.Mutex
	refs   []string
	active int
	crowd  bool
}

func (q *quiet) ImagePull(ctx context.Context, ref string, o client.ImagePullOptions) (client.ImagePullResponse, error) {
	q.mu.Lock()
	q.refs = append(q.refs, ref)
	q.active++
	q.crowd = q.crowd || q.active > 1
	q.mu.Unlock()
	r, err := q.fake.ImagePull(ctx, ref, o)
	return open{r, q}, err
}

// open is a pull that has not been closed.
type open struct {
	client.ImagePullResponse
	q *quiet
}

func (o open) Close() error {
	o.q.mu.Lock()
	defer o.q.mu.Unlock()
	o.q.active--
	return nil
}

func TestTheNextReleaseComesQuietly(t *testing.T) {
	t.Parallel()
	engine := newFake()
	q := &quiet{fake: engine}
	m := manage(t, release("c1", "garden:1", "", ""), supervisor.Config{Engine: engine, Background: q})
	q.mu.Lock()
	if len(q.refs) > 1 { // the second may come when the first runs already
		t.Errorf("%q were pulled quietly on a device that runs nothing", q.refs)
	}
	q.refs = nil
	q.mu.Unlock()
	next := strings.Replace(release("c2", "garden:2", "", ""), "shed:1", "garden:3", 1)
	m.f.Wants(next)
	m.update()
	m.until("the next release runs", func() bool { return m.running()["web"] == "garden:2" && m.running()["tool"] == "garden:3" })
	q.mu.Lock()
	defer q.mu.Unlock()
	slices.Sort(q.refs)
	if !slices.Equal(q.refs, []string{"garden:2", "garden:3"}) || q.crowd {
		t.Errorf("pulled quietly: %q, two at once: %v; want both images, one after the other", q.refs, q.crowd)
	}
}
