package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/oci"
)

// victimDir, when set, makes the test binary the victim of TestKilledWriter.
const victimDir = "MINKE_STORE_VICTIM"

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimDir); dir != "" {
		fmt.Println(victim(dir, os.Getenv("MINKE_STORE_LINKS") != ""))
		return
	}
	os.Exit(m.Run())
}

// victim adds layers and images until it is killed, and says what is done.
func victim(dir string, links bool) error {
	db, err := bbolt.Open(filepath.Join(dir, "minke.db"), 0o600, nil)
	if err != nil {
		return err
	}
	s, err := Open(dir, db, Options{Links: links})
	if err != nil {
		return err
	}
	t := &testing.T{}
	for i := 0; ; i++ {
		in := victimTar(t, i)
		l, err := s.AddLayer(context.Background(), "", bytes.NewReader(in))
		if err != nil {
			return err
		}
		config := fmt.Sprintf(`{"rootfs":{"type":"layers","diff_ids":[%q]}}`, l.DiffID)
		id, err := s.PutImage(context.Background(), []byte(config), "")
		if err != nil {
			return err
		}
		fmt.Println("done", i, id)
	}
}

func victimTar(t testing.TB, i int) []byte {
	entries := []entry{dir("d")}
	for j := range 40 {
		entries = append(entries, file(fmt.Sprintf("d/%d", j), strings.Repeat(fmt.Sprintf("%d-%d,", i, j%20), 300)))
	}
	return tarOf(t, append(entries, file("big", strings.Repeat(fmt.Sprint(i, ","), 200<<10)))...)
}

func TestKilledWriterLeavesACleanStore(t *testing.T) {
	testenv.NeedRoot(t)
	for _, links := range []bool{false, true} {
		base := testenv.DiskDir(t)
		done := 0
		for round := 0; round < 8 || done == 0 && round < 13; round++ {
			d := time.Duration(20+round*17) * time.Millisecond
			if round >= 8 {
				d <<= round - 7 // a loaded machine gets nothing done in that time
			}
			done = max(done, killAfter(t, base, links, d))
			func() {
				db, err := bbolt.Open(filepath.Join(base, "minke.db"), 0o600, &bbolt.Options{Timeout: 5 * time.Second})
				must(t, err)
				defer db.Close()
				s, err := Open(base, db, Options{Links: links})
				must(t, err)
				defer s.Close()
				complete(t, s, done)
			}()
		}
		if done == 0 {
			t.Errorf("no image was done in any round, so this test shows little")
		}
	}
}

// killAfter lets a victim work for a while and says how many images it
// reported as done.
func killAfter(t *testing.T, dir string, links bool, d time.Duration) int {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), victimDir+"="+dir)
	if links {
		cmd.Env = append(cmd.Env, "MINKE_STORE_LINKS=1")
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	timer := time.AfterFunc(d, func() { cmd.Process.Kill() })
	defer timer.Stop()
	if err := cmd.Wait(); !strings.Contains(fmt.Sprint(err), "killed") {
		t.Fatalf("victim ended with %v before it was killed:\n%s", err, out.String())
	}
	return strings.Count(out.String(), "done")
}

// complete checks that every image that was reported is whole and that nothing
// is there which belongs to none.
func complete(t *testing.T, s *Store, done int) {
	t.Helper()
	checkStaging(t, s)
	images, err := s.Images()
	must(t, err)
	if len(images) < done {
		t.Errorf("%d images, but %d were reported as done", len(images), done)
	}
	for _, img := range images {
		d := oci.DiffID(img.Config.RootFS.DiffIDs[0])
		must(t, s.LayerTar(t.Context(), oci.Chain("", d), io.Discard))
		root := look(t, s, oci.Chain("", d))
		if got := read(t, root, "d/39"); len(got) == 0 || strings.ContainsRune(got, 0) {
			t.Errorf("d/39 = %.20q", got)
		}
	}
	if _, err := s.GC(t.Context()); err != nil {
		t.Errorf("GC: %v", err)
	}
	if layers, err := os.ReadDir(s.path("layers")); err != nil || len(layers) != len(images) {
		t.Errorf("%d layers for %d images, %v", len(layers), len(images), err)
	}
}

func TestUnusableRecordsAreSetAside(t *testing.T) {
	testenv.NeedRoot(t)
	base := testenv.DiskDir(t)
	s := openAt(t, base, Options{})
	good := putImage(t, s, "good", "", add(t, s, "", tarOf(t, file("a", "good"))))
	lost := add(t, s, "", tarOf(t, file("a", "lost")))
	lostTop := add(t, s, lost.ChainID, tarOf(t, file("b", "top")))
	bad := putImage(t, s, "bad", "", lost, lostTop)
	corrupt := putImage(t, s, "corrupt", "")
	must(t, s.Tag(good, ref(t, "good")), s.Tag(bad, ref(t, "bad")), s.Tag(corrupt, ref(t, "corrupt")))
	must(t, os.RemoveAll(s.layerPath(lost.ChainID)))
	must(t, s.update(func(tb tables) error { return tb.images.Put([]byte(corrupt), []byte("{not json")) }))

	var log bytes.Buffer
	s, err := Open(base, s.db, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	must(t, err)
	defer s.Close()
	images, err := s.Images()
	if err != nil || len(images) != 1 || images[0].ID != good {
		t.Errorf("Images = %v, %v; want the good one", images, err)
	}
	for _, name := range []string{"bad", "corrupt"} {
		if id, _, err := s.Resolve(name); err == nil {
			t.Errorf("Resolve(%s) = %s, want an error", name, id)
		}
	}
	if n := strings.Count(log.String(), "record set aside"); n != 6 {
		t.Errorf("%d records reported, want two layers, two images, two names:\n%s", n, log.String())
	}
	if _, err := os.Stat(s.layerPath(lostTop.ChainID)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the layer above the lost one is still there: %v", err)
	}
}
