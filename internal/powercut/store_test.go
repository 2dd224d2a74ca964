//go:build linux

package powercut

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/testdaemon"
	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/oci"
)

const versions = 6 // of the image that the registry has

// A fileSystem is one that devices have their data on.
type fileSystem struct {
	name   string
	mkfs   []string
	fsck   []string // before each mount, if it has no journal
	size   int64
	option string // of its mounts
}

func (fs fileSystem) mount(device string) (int, error) {
	options := map[string]string{"source": device}
	if fs.option != "" {
		options[fs.option] = ""
	}
	return Mount(fs.name, options, 0)
}

var (
	// As mkfs makes big ones: blocks of 4 kB; and all of it at once, for the
	// kernel's writes of what mkfs left would be counted as the store's. Below
	// 128 MB it has no second superblock, and a torn one is the end of it.
	ext4 = fileSystem{"ext4", []string{"mkfs.ext4", "-q", "-b", "4096", "-J", "size=16", "-E", "lazy_itable_init=0,lazy_journal_init=0"}, nil, 160 << 20, ""}
	tiny = fileSystem{"ext4", []string{"mkfs.ext4", "-q", "-m", "0"}, nil, 8 << 20, ""}

	noJournal = fileSystem{"ext4", []string{"mkfs.ext4", "-q", "-O", "^has_journal"}, []string{"e2fsck", "-fy"}, 64 << 20, ""}
	xfs       = fileSystem{"xfs", []string{"mkfs.xfs", "-q"}, nil, 320 << 20, "nouuid"}
	btrfs     = fileSystem{"btrfs", []string{"mkfs.btrfs", "-q"}, nil, 128 << 20, ""}
)

// A statement is what a victim said at a moment.
type statement struct {
	at       int
	name, id string // id is "" for what may or may not be there, "gone" for what is not
}

// A recording is a victim's disk and what it said.
type recording struct {
	Log
	begin, end int // of its work
	said       []statement
	fs         fileSystem
	script     script
	full       int    // how often the disk was
	daemons    string // where minked is, to be started on some of the cuts
}

// record lets a victim work on a new disk.
func record(t testing.TB, fs fileSystem, sc script) recording {
	t.Helper()
	testenv.Need(t, fs.mkfs[0])
	dir := t.TempDir()
	d, err := NewDisk(dir, fs.size)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		t.Skipf("needs FUSE and loop devices: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if out, err := exec.Command(fs.mkfs[0], append(fs.mkfs[1:], d.Path)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", fs.mkfs, err, out)
	}
	thin := &atomic.Bool{}
	if sc.Registry = serveImages(t); sc.Deltas {
		sc.Registry = serveDeltas(t, thin)
	}
	text, err := json.Marshal(sc)
	if err != nil {
		t.Fatal(err)
	}
	root, err := fs.mount(d.Path)
	if errors.Is(err, unix.ENODEV) {
		t.Skipf("this kernel has not this file system: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	unix.Syncfs(root)
	rec := recording{begin: d.Now(), fs: fs, script: sc}
	f := os.NewFile(uintptr(root), "root")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), victimVar+"="+string(text))
	cmd.ExtraFiles = []*os.File{f}
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f.Close() // the victim has it
	thin.Store(true)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		rec.hear(t, d.Now(), lines.Text())
		fmt.Fprintln(in)
	}
	rec.end = d.Now() // before the victim unmounts, which syncs
	thin.Store(false)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("victim: %v: %s", err, stderr.String())
	}
	rec.Log = d.Log()
	rec.end = min(rec.end, rec.Len())
	if sc.Deltas {
		rec.begin = rec.said[1].at // when version 0 was there
	}
	return rec
}

func (rec *recording) hear(t testing.TB, at int, line string) {
	t.Helper()
	f := strings.Fields(line)
	switch {
	case f[0] == "have" && len(f) == 3:
		rec.said = append(rec.said, statement{at, f[1], f[2]})
	case f[0] == "busy" && len(f) == 2:
		rec.said = append(rec.said, statement{at, f[1], ""})
	case f[0] == "gone" && len(f) == 2:
		rec.said = append(rec.said, statement{at, f[1], "gone"})
	case f[0] == "full":
		if rec.full++; !strings.Contains(line, "no space left on device") {
			t.Errorf("on a full disk the victim says %q", line)
		}
	case f[0] == "begin", f[0] == "size", f[0] == "synced":
		rec.said = append(rec.said, statement{at, f[0], f[len(f)-1]})
	case f[0] == "end":
	default:
		t.Fatalf("the victim says %q", line)
	}
}

// images are what a registry has, in the repository app.
type images struct {
	docs  map[string][]byte // manifests and indexes, by tag and by digest
	blobs map[string][]byte
	line  func(w http.ResponseWriter, r *http.Request, blob []byte) http.ResponseWriter // by which blobs go out
}

func (im *images) keep(b []byte) map[string]any {
	im.blobs[string(oci.FromBytes(b))] = b
	return map[string]any{"digest": oci.FromBytes(b), "size": len(b), "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}
}

// add adds an image of these layers and gives its manifest's digest.
func (im *images) add(t testing.TB, tag string, layers ...[]byte) oci.Digest {
	t.Helper()
	config := im.keep(configOf(layers))
	config["mediaType"] = "application/vnd.oci.image.config.v1+json"
	var described []any
	for _, l := range layers {
		described = append(described, im.keep(zipped(l)))
	}
	doc, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": described,
	})
	if err != nil {
		t.Fatal(err)
	}
	digest := oci.FromBytes(doc)
	im.docs[tag], im.docs[string(digest)] = doc, doc
	return digest
}

// serve is a registry's address.
func (im *images) serve(t testing.TB) string {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /v2/app/manifests/{ref}", func(w http.ResponseWriter, r *http.Request) {
		doc, ok := im.docs[r.PathValue("ref")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		var m struct{ MediaType string }
		json.Unmarshal(doc, &m)
		w.Header().Set("Content-Type", m.MediaType)
		w.Header().Set("Docker-Content-Digest", string(oci.FromBytes(doc)))
		w.Write(doc)
	})
	mux.HandleFunc("GET /v2/app/referrers/", http.NotFound)
	mux.HandleFunc("GET /v2/app/blobs/{digest}", func(w http.ResponseWriter, r *http.Request) {
		blob, ok := im.blobs[r.PathValue("digest")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		if im.line != nil {
			w = im.line(w, r, blob)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// serveImages is a registry with versions of an image that share a layer.
func serveImages(t testing.TB) string {
	im := images{docs: map[string][]byte{}, blobs: map[string][]byte{}}
	for v := range versions {
		im.add(t, fmt.Sprint(v), layerTar(9, v/3), layerTar(9, 50+v))
	}
	return im.serve(t)
}

// expected is what must be there, by name, after a cut: an ID, or "gone".
func (rec *recording) expected(at int) map[string]string {
	want := map[string]string{}
	for _, s := range rec.said {
		if s.at > at {
			break
		}
		want[s.name] = s.id
		if s.id == "" {
			delete(want, s.name)
		}
	}
	return want
}

// inspect makes the disk as a cut leaves it, lets the file system recover and
// says what is wrong with the store on it.
func (rec *recording) inspect(ctx context.Context, dir string, c Cut) error {
	image, err := os.CreateTemp(dir, "disk")
	if err != nil {
		return err
	}
	defer os.Remove(image.Name())
	defer image.Close()
	if err := errors.Join(image.Truncate(rec.size), rec.Write(image, c)); err != nil {
		return err
	}
	loop, err := Attach(dir, image)
	if err != nil {
		return err
	}
	defer loop.Close()
	if rec.fs.fsck != nil {
		exec.Command(rec.fs.fsck[0], append(rec.fs.fsck[1:], loop.Path)...).Run() // it says by its status that it mended something
	}
	fd, err := rec.fs.mount(loop.Path)
	if errors.Is(err, unix.EBADMSG) && rec.fs.name == "ext4" {
		// Its superblock has one checksum in two sectors. What a boot runs first
		// finds another one.
		exec.Command("e2fsck", "-fy", loop.Path).Run()
		fd, err = rec.fs.mount(loop.Path)
	}
	if err != nil {
		return err
	}
	root := os.NewFile(uintptr(fd), "root")
	defer root.Close()
	if rec.daemons != "" && c.Seed%16 == 0 {
		if err := starts(ctx, rec.daemons, dir, rec.fs.name, loop.Path); err != nil {
			return err
		}
	}
	return examination{rec.script, rec.expected(c.At), rec.fs.fsck != nil}.start(ctx, root)
}

// starts says why minked does not start on a file system, if it does not.
func starts(ctx context.Context, bin, dir, fstype, device string) error {
	socket, data := filepath.Join(dir, "engine.sock"), filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", filepath.Join(bin, "minked"), "--data-root", data, "--exec-root", filepath.Join(dir, "run"),
		"-H", "unix://"+socket, "--pidfile", filepath.Join(dir, "pid"), "--bridge", "pc0", "--supervisor=false")
	cmd.Env = append(os.Environ(), mountVar+"="+fstype+" "+device+" "+data)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
			cmd.Process.Signal(syscall.SIGTERM)
			<-done
			return nil
		}
		select {
		case err := <-done:
			return fmt.Errorf("minked ends: %w: %s", err, log.String())
		default:
		}
		if time.Now().After(deadline) {
			cmd.Process.Kill()
			<-done
			return fmt.Errorf("minked does not serve: %w: %s", err, log.String())
		}
	}
}

// mountVar makes the test binary mount something in its own mount namespace,
// which it was started in, and become the command in its arguments.
const mountVar = "MINKE_POWERCUT_MOUNT"

func becomeWithMount(text string) error {
	f := strings.Fields(text)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount(f[1], f[2], f[0], 0, ""); err != nil {
		return err
	}
	return syscall.Exec(os.Args[1], os.Args[1:], os.Environ())
}

// An examination says what is wrong with a store after a power cut.
type examination struct {
	Script script
	Want   map[string]string // as recording.expected has it
	Mends  bool              // the store may need a repair
}

// examinationVar makes the test binary do the one that it says, on the file
// system of descriptor 3.
const examinationVar = "MINKE_POWERCUT_EXAMINATION"

// examinationTime is how long one may take, which is many times what any does on
// a slow machine.
const examinationTime = time.Minute

// start does it in a process of its own: over some damage bbolt panics, faults,
// or never comes to an end. One that takes too long says where it is.
func (e examination) start(ctx context.Context, root *os.File) error {
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, examinationTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), examinationVar+"="+string(text))
	cmd.ExtraFiles = []*os.File{root}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return fmt.Errorf("the examination did not end within %s:\n%s", examinationTime, out)
	}
	if err != nil {
		return fmt.Errorf("%s (%w)", bytes.TrimSpace(out), err)
	}
	return nil
}

func examine(text string) error {
	var e examination
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		return err
	}
	return e.examine(context.Background(), "/proc/self/fd/3")
}

func (e examination) examine(ctx context.Context, root string) error {
	if _, err := os.Stat(root + "/minke.db"); err != nil && len(e.Want) == 0 {
		return nil // it had not even begun
	}
	db, err := bbolt.Open(root+"/minke.db", 0o600, &bbolt.Options{FreelistType: bbolt.FreelistMapType, Timeout: time.Second})
	if e.Mends && errors.Is(err, bolterrors.ErrInvalid) {
		return nil // that is found, and minked makes it anew: engine/internal/boltfile
	}
	if err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	defer db.Close()
	var log bytes.Buffer
	s, err := store.Open(root, db, store.Options{Links: e.Script.Links, Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError}))})
	if err != nil {
		return err
	}
	defer s.Close()
	if e.Mends {
		return mends(ctx, s)
	}
	if log.Len() > 0 {
		return fmt.Errorf("open: %s", log.String())
	}
	r, err := s.Check(ctx)
	if err != nil {
		return err
	}
	if len(r.Problems) > 0 {
		return fmt.Errorf("%s; the first: %s", r.Summary(), r.Problems[0].What)
	}
	for name, id := range e.Want {
		got, _, err := s.Resolve(name)
		switch {
		case id == "gone" && err == nil:
			return fmt.Errorf("%s is back, though it was reported as removed", name)
		case id == "gone":
		case err != nil || string(got) != id:
			return fmt.Errorf("%s is %s, %v; it was reported as %s", name, got, err, id)
		default:
			if err := whole(ctx, s, got); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	if _, err := s.GC(ctx); err != nil || !e.Script.Deltas {
		return err
	}
	return e.finishes(ctx, s, db)
}

// mends repairs a store and says what is wrong with it after that.
func mends(ctx context.Context, s *store.Store) error {
	r, err := s.Check(ctx)
	if err != nil {
		return err
	}
	if _, err := s.Repair(ctx, r, func(oci.ImageID) (string, bool) { return "", false }); err != nil {
		return err
	}
	if r, err = s.Check(ctx); err != nil || len(r.Problems) > 0 {
		return fmt.Errorf("after a repair: %s, %w", r.Summary(), err)
	}
	images, err := s.Images()
	for _, img := range images {
		err = errors.Join(err, whole(ctx, s, img.ID))
	}
	return err
}

// whole reads an image's layers.
func whole(ctx context.Context, s *store.Store, id oci.ImageID) error {
	img, err := s.Image(id)
	if err != nil {
		return err
	}
	var chain oci.ChainID
	for _, d := range img.Config.RootFS.DiffIDs {
		chain = oci.Chain(chain, oci.DiffID(d))
		if err := s.LayerTar(ctx, chain, io.Discard); err != nil {
			return err
		}
	}
	return nil
}

// memDir is where rebuilt disks are: in memory, where tests may use it.
func memDir(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "minke-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// cuts cuts the power at random moments of a recording and says what was lost.
func (rec *recording) cuts(t testing.TB, n int, seed uint64) (lost []error) {
	t.Helper()
	dir := memDir(t)
	r := rand.New(rand.NewPCG(seed, 3))
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(context.Background())
	g.SetLimit(2)
	for i := range n {
		c := RandomCut(r, rec.begin, rec.end)
		g.Go(func() error {
			own := filepath.Join(dir, fmt.Sprint(i))
			if err := os.Mkdir(own, 0o700); err != nil {
				return err
			}
			defer os.RemoveAll(own)
			if err := rec.inspect(ctx, own, c); err != nil {
				mu.Lock()
				lost = append(lost, fmt.Errorf("%v: %w", c, err))
				mu.Unlock()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	return lost
}

func need(t testing.TB) {
	testenv.NeedRoot(t)
	if testing.Short() {
		t.Skip("takes seconds")
	}
}

// long is how many power cuts make test-powercut wants, 0 in make test.
var long, _ = strconv.Atoi(os.Getenv("MINKE_POWERCUT"))

// cutAll records victims and cuts their power n times in all.
func cutAll(t *testing.T, fs fileSystem, n int, sc script) {
	const each = 20 // cuts of one recording
	total, lost, start := 0, 0, time.Now()
	for i := 0; total < n; i++ {
		sc.Links, sc.Seed = i%3 == 1, rand.Uint64()
		rec := record(t, fs, sc)
		if long > 0 && !sc.Links {
			rec.daemons = testdaemon.Build(t)
		}
		for _, err := range rec.cuts(t, each, sc.Seed) {
			lost++
			t.Errorf("seed %d, links %v: %v", sc.Seed, sc.Links, err)
		}
		total += each
	}
	t.Logf("%d power cuts, %d losses, %s", total, lost, time.Since(start).Round(time.Second))
}

func TestNoImageIsLostToAPowerCut(t *testing.T) {
	need(t)
	cutAll(t, ext4, max(long, 20), script{Steps: 14})
}

func TestNoImageIsLostToAPowerCutOnOtherFileSystems(t *testing.T) {
	need(t)
	if long == 0 {
		t.Skip("takes minutes: make test-powercut")
	}
	for _, fs := range []fileSystem{xfs, btrfs} {
		t.Run(fs.name, func(t *testing.T) { cutAll(t, fs, 60, script{Steps: 10}) })
	}
}

// Without a journal a power cut may damage directories that were not being
// written, which no store can help. What it can do is not to take damage for an
// image, and to mend itself.
func TestDamageByAFileSystemWithoutAJournalIsFound(t *testing.T) {
	need(t)
	if long == 0 {
		t.Skip("takes minutes: make test-powercut")
	}
	cutAll(t, noJournal, 100, script{Steps: 14})
}

// A disk that is full at any write costs an error, and no more: what was
// reported is whole, and removing images makes room again.
func TestAFullDiskLosesNothing(t *testing.T) {
	need(t)
	seeds := []uint64{1}
	if long > 0 {
		seeds = []uint64{1, 2, 3, 4, 5}
	}
	for _, seed := range seeds {
		for _, links := range []bool{false, true} {
			rec := record(t, tiny, script{Links: links, Seed: seed, Steps: 16, Full: true})
			if rec.full == 0 {
				t.Errorf("links %v, seed %d: the disk was never full, so this test shows nothing", links, seed)
			}
			for _, err := range rec.cuts(t, 3, seed) {
				t.Errorf("links %v, seed %d: %v", links, seed, err)
			}
		}
	}
}

// Flash wears with each write, and what is reported must not be in memory
// alone. Content is written once. What ext4 writes beside it is inodes, an
// object's and a layer's for each file, both once in the journal and once in
// place; in the journal again if it takes longer than the 5 s of a transaction.
func TestContentIsWrittenOnceAndAtOnce(t *testing.T) {
	need(t)
	const files, perFile = 2000, 2 << 10
	fs := ext4
	fs.size = 256 << 20
	rec := record(t, fs, script{Bulk: files, Seed: 5})
	if len(rec.said) != 3 {
		t.Fatalf("the victim said %v", rec.said)
	}
	size, err := strconv.ParseInt(rec.said[1].id, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	begin, reported, synced := rec.said[0].at, rec.said[1].at, rec.said[2].at
	written, late := rec.Written(begin, reported), rec.Written(reported, synced)
	t.Logf("%d files, %d bytes in blocks: %d written (%.3f times), %d after it was reported", files, size, written, float64(written)/float64(size), late)
	if most := size + size/100 + files*perFile + 1<<20; written > most {
		t.Errorf("%d bytes were written for %d of content in %d files, want %d at most", written, size, files, most)
	}
	if late > 64<<10 {
		t.Errorf("%d bytes were written after the image was reported, want none but the time of the last look", late)
	}
}

func TestAStoreThatDoesNotSyncIsCaught(t *testing.T) {
	need(t)
	caught(t, script{Seed: 7, Steps: 10}, unix.SYS_SYNC_FILE_RANGE)
}

// caught expects losses without each of the syncs, one of which is that of
// content.
func caught(t *testing.T, sc script, content uintptr) {
	for name, calls := range map[string][]uintptr{
		"content":   {content},
		"directory": {unix.SYS_FSYNC},
		"records":   {unix.SYS_FDATASYNC},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "records" && os.Getenv(aloneVar) == "" {
				alone(t)
				return
			}
			sc := sc
			sc.Without = calls
			rec := record(t, ext4, sc)
			n, lost := 0, []error(nil)
			for ; len(lost) == 0 && n < 10*24; n += 24 {
				lost = rec.cuts(t, 24, sc.Seed+uint64(n))
			}
			if len(lost) == 0 {
				t.Fatalf("%d power cuts of a store that does not sync its %s lost nothing", n, name)
			}
			t.Logf("%d of %d power cuts lost something; one: %.300s", len(lost), n, lost[0])
		})
	}
}

// aloneVar is set where a test runs in a process of its own.
const aloneVar = "MINKE_POWERCUT_ALONE"

// alone runs the test again in a process of its own: pages of a database that
// lead to themselves end the process that reads them, which is a loss as well.
func alone(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-test.run", "^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$")
	cmd.Env = append(os.Environ(), aloneVar+"=1")
	if out, err := cmd.CombinedOutput(); err != nil && !bytes.Contains(out, []byte("stack overflow")) {
		t.Fatalf("%v: %s", err, out)
	}
}
