//go:build linux

package powercut

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"unsafe"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/engine/archive"
	"github.com/minke-os/minke/engine/registry"
	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/testdaemon"
	"github.com/minke-os/minke/oci"
)

// victimVar makes the test binary a victim, which is what it says, on the file
// system of descriptor 3.
const victimVar = "MINKE_POWERCUT_VICTIM"

func TestMain(m *testing.M) {
	if text := os.Getenv(mountVar); text != "" {
		fmt.Println("failed:", becomeWithMount(text))
		os.Exit(1)
	}
	for name, do := range map[string]func(text string) error{victimVar: victim, examinationVar: examine} {
		if text := os.Getenv(name); text != "" {
			if err := do(text); err != nil {
				fmt.Println("failed:", err)
				os.Exit(1)
			}
			return
		}
	}
	if os.Getenv(aloneVar) != "" {
		debug.SetMaxStack(64 << 20)
	}
	testdaemon.Main(m)
}

// A script is what a victim is told to do.
type script struct {
	Links    bool
	Seed     uint64
	Steps    int
	Registry string
	Without  []uintptr // system calls that do nothing: the syncs that are taken out
	Full     bool      // the disk is too small: go on when there is no space left
	Bulk     int       // load one image with so many files instead, and let it go
	Deltas   bool      // updates by deltas instead
}

// A worker is a victim at work. It says what it does, a line each:
//
//	busy NAME      an image of this name may come or go from now on
//	have NAME ID   it is complete and will survive
//	gone NAME      it is not there any more
//
// and waits for an answer before it goes on.
type worker struct {
	script
	r    *rand.Rand
	s    *store.Store
	c    *registry.Client
	in   *bufio.Reader
	have []string
	root string
}

func victim(text string) error {
	w := &worker{in: bufio.NewReader(os.Stdin), root: "/proc/self/fd/3"}
	if err := json.Unmarshal([]byte(text), &w.script); err != nil {
		return err
	}
	if err := takeOut(w.Without); err != nil {
		return err
	}
	w.r = rand.New(rand.NewPCG(w.Seed, 2))
	db, err := bbolt.Open(w.root+"/minke.db", 0o600, &bbolt.Options{FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return err
	}
	defer db.Close()
	if w.s, err = store.Open(w.root, db, store.Options{Links: w.Links}); err != nil {
		return err
	}
	defer w.s.Close()
	tries := 0
	if w.Deltas {
		tries = 1 // a broken line ends a pull
	}
	if w.c, err = registry.New(w.s, db, registry.Options{Tries: tries}); err != nil {
		return err
	}
	if w.Full {
		if err := w.leave(2500 << 10); err != nil {
			return err
		}
	}
	if w.Bulk > 0 {
		return w.bulk(context.Background())
	}
	step := w.step
	if w.Deltas {
		step = w.update
	}
	for i := range w.Steps {
		if err := step(context.Background(), i); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	w.say("end")
	return nil
}

// leave takes the disk's room but for so many bytes.
func (w *worker) leave(free int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(w.root, &st); err != nil {
		return err
	}
	f, err := os.Create(w.root + "/filler")
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*int64(st.Bsize)-free)
}

// takeOut makes system calls of this process do nothing and report success.
func takeOut(calls []uintptr) error {
	if len(calls) == 0 {
		return nil
	}
	const allow, nothing = 0x7fff0000, 0x00050000 // SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO with 0
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}}
	for _, nr := range calls {
		filter = append(filter, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(nr)}, unix.SockFilter{Code: unix.BPF_RET, K: nothing})
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET, K: allow})
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	return nil
}

func (w *worker) say(format string, args ...any) {
	fmt.Printf(format+"\n", args...)
	w.in.ReadString('\n') // the end of input is an answer, too
}

// step does one thing that an engine does with images.
func (w *worker) step(ctx context.Context, i int) error {
	name := fmt.Sprintf("app%d:%d", w.r.IntN(4), i)
	if len(w.have) > 3 && w.r.IntN(3) == 0 && !w.Full {
		return w.remove(ctx)
	}
	var err error
	switch w.r.IntN(4) {
	case 0, 1:
		name = "app:" + fmt.Sprint(i%versions)
		err = w.get(name, func() (oci.ImageID, error) { return w.pull(ctx, name) })
	case 2:
		err = w.get(name, func() (oci.ImageID, error) { return w.load(ctx, i, name) })
	default:
		err = w.get(name, func() (oci.ImageID, error) { return w.commit(ctx, i, name) })
	}
	if w.Full && errors.Is(err, unix.ENOSPC) {
		w.say("full %s", strings.ReplaceAll(err.Error(), "\n", " "))
		return w.remove(ctx)
	}
	return err
}

func (w *worker) get(name string, f func() (oci.ImageID, error)) error {
	w.say("busy %s", name)
	id, err := f()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	w.have = append(w.have, name)
	w.say("have %s %s", name, id)
	return nil
}

// bulk adds an image like a distribution's, says how many blocks it has, and
// waits before it lets the kernel write what it has not written yet.
func (w *worker) bulk(ctx context.Context) error {
	var size int64
	layer := func(out io.Writer) error {
		tw := tar.NewWriter(out)
		for i := range w.Bulk {
			body := content(w.Seed, i, bulkSize(i))
			size += (int64(len(body)) + 4095) &^ 4095
			if i%50 == 0 {
				tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("%d/", i/50), Mode: 0o755})
			}
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%d/%d", i/50, i), Mode: 0o644, Size: int64(len(body))}); err != nil {
				return err
			}
			tw.Write(body)
		}
		return tw.Close()
	}
	w.say("begin")
	l, err := w.s.AddPacked(ctx, "", layer)
	if err != nil {
		return err
	}
	config, _ := json.Marshal(map[string]any{"os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": []string{string(l.DiffID)}}})
	id, err := w.s.PutImage(ctx, config, "")
	if err != nil {
		return err
	}
	if err := errors.Join(w.tag(id, "bulk"), w.s.Settle()); err != nil {
		return err
	}
	w.say("size %d", size)
	root, err := os.Open(w.root)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := unix.Syncfs(int(root.Fd())); err != nil {
		return err
	}
	w.say("synced")
	return nil
}

// bulkSize gives files the sizes that those of a Debian image have, more or
// less: half under 4 kB, 28 kB in the mean, some of megabytes.
func bulkSize(i int) int {
	switch {
	case i%400 == 399:
		return 4 << 20
	case i%20 == 19:
		return 200 << 10
	case i%2 == 1:
		return 12 << 10
	}
	return 1 + i%4096
}

func (w *worker) pull(ctx context.Context, name string) (oci.ImageID, error) {
	ref, err := oci.ParseReference(w.Registry + "/" + name)
	if err != nil {
		return "", err
	}
	id, err := w.c.Pull(ctx, ref, registry.PullOptions{})
	if err != nil {
		return "", err
	}
	return id, w.tag(id, name)
}

func (w *worker) tag(id oci.ImageID, name string) error {
	ref, err := oci.ParseReference(name)
	if err != nil {
		return err
	}
	return w.s.Tag(id, ref)
}

// load loads an image of two layers, of which others may have the lower.
func (w *worker) load(ctx context.Context, i int, name string) (oci.ImageID, error) {
	layers := [][]byte{layerTar(1, i%3), layerTar(w.Seed, 100+i)}
	config := configOf(layers)
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{name}, "Layers": []string{"0.tar", "1.tar"}}})
	if err != nil {
		return "", err
	}
	for _, f := range []struct {
		name string
		b    []byte
	}{{"manifest.json", manifest}, {"config.json", config}, {"0.tar", layers[0]}, {"1.tar", layers[1]}} {
		tw.WriteHeader(&tar.Header{Name: f.name, Size: int64(len(f.b)), Mode: 0o600})
		tw.Write(f.b)
	}
	tw.Close()
	return oci.ImageID(oci.FromBytes(config)), archive.Load(ctx, w.s, &buf, archive.LoadOptions{})
}

// commit makes an image as a build step or docker commit does: of the changes
// in an upper directory.
func (w *worker) commit(ctx context.Context, i int, name string) (oci.ImageID, error) {
	release, err := w.s.Lease("")
	if err != nil {
		return "", err
	}
	defer release()
	images, err := w.s.Images()
	if err != nil {
		return "", err
	}
	var diffs []oci.DiffID
	if len(images) > 0 {
		for _, d := range images[w.r.IntN(len(images))].Config.RootFS.DiffIDs {
			diffs = append(diffs, oci.DiffID(d))
		}
	}
	parent := oci.ChainOf(diffs)
	m, err := w.s.Mount(parent)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(w.root, fmt.Sprintf("container-%d", i))
	defer os.RemoveAll(dir)
	m.Upper, m.Work = dir+"/upper", dir+"/work"
	if err := errors.Join(os.MkdirAll(m.Upper, 0o755), os.MkdirAll(m.Work, 0o755)); err != nil {
		return "", err
	}
	if err := errors.Join(os.Mkdir(m.Upper+"/run", 0o755), os.WriteFile(m.Upper+"/run/state", content(w.Seed, i, 40<<10), 0o644), os.Symlink("state", m.Upper+"/run/link")); err != nil {
		return "", err
	}
	l, err := w.s.Commit(ctx, parent, m.Upper, m)
	if err != nil {
		return "", err
	}
	var list []string
	for _, d := range append(diffs, l.DiffID) {
		list = append(list, string(d))
	}
	config, _ := json.Marshal(map[string]any{"os": "linux", "architecture": oci.Host().Architecture, "author": name, "rootfs": map[string]any{"type": "layers", "diff_ids": list}})
	id, err := w.s.PutImage(ctx, config, "")
	if err != nil {
		return "", err
	}
	return id, w.tag(id, name)
}

// remove takes an image away, and what only it needed.
func (w *worker) remove(ctx context.Context) error {
	if len(w.have) == 0 {
		_, err := w.s.GC(ctx)
		return err
	}
	return w.drop(ctx, w.have[w.r.IntN(len(w.have))])
}

func (w *worker) drop(ctx context.Context, name string) error {
	w.say("busy %s", name)
	nobody := func(oci.ImageID) (string, bool) { return "", false }
	if _, err := w.s.Remove(name, store.RemoveOptions{Force: true}, nobody); err != nil && !strings.Contains(err.Error(), "No such image") {
		return err
	}
	kept := w.have[:0]
	for _, h := range w.have {
		if h != name {
			kept = append(kept, h)
		}
	}
	w.have = kept
	w.say("gone %s", name)
	_, err := w.s.GC(ctx)
	return err
}

// content are bytes that no disk can compress, the same for the same numbers.
func content(seed uint64, n, size int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(n), byte(n >> 8), byte(size), byte(size >> 8)})
	b := make([]byte, size)
	r.Read(b)
	return b
}

// layerTar is a layer with files of all sizes, links, a directory that hides
// what is below and a deleted file.
func layerTar(seed uint64, n int) []byte {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	add := func(h tar.Header, body []byte) {
		h.Size, h.Mode = int64(len(body)), h.Mode|0o644
		tw.WriteHeader(&h)
		tw.Write(body)
	}
	add(tar.Header{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o111}, nil)
	for j := range 24 {
		add(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("etc/%d-%d", n%5, j), Uid: j}, content(seed, n*7+j/3, 1<<(j/2)))
	}
	add(tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: fmt.Sprintf("etc/%d-20", n%5)}, nil)
	add(tar.Header{Typeflag: tar.TypeSymlink, Name: "soft", Linkname: "hard"}, nil)
	big := content(seed, n%2, 400<<10) // two versions of one size, for twins
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/program"}, big)
	if n >= 50 {
		add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/own"}, content(seed, n, 300<<10))
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/.wh.gone"}, nil)
	add(tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("var/%d/", n)}, nil)
	tw.Close()
	return buf.Bytes()
}

func configOf(layers [][]byte) []byte {
	var diffs []string
	for _, l := range layers {
		diffs = append(diffs, string(oci.FromBytes(l)))
	}
	b, _ := json.Marshal(map[string]any{"os": "linux", "architecture": oci.Host().Architecture, "rootfs": map[string]any{"type": "layers", "diff_ids": diffs}})
	return b
}

func zipped(b []byte) []byte {
	var buf bytes.Buffer
	w, _ := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
	io.Copy(w, bytes.NewReader(b))
	w.Close()
	return buf.Bytes()
}
