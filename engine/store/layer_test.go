package store

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/overlay"
	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/oci"
)

func stat(t testing.TB, root *os.Root, name string) *syscall.Stat_t {
	t.Helper()
	st, err := lstat(root, name)
	if err != nil || st == nil {
		t.Fatalf("lstat %s: %v, %v", name, st, err)
	}
	return st
}

func gone(t testing.TB, root *os.Root, name string) {
	t.Helper()
	if fi, err := root.Lstat(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is there: %v, %v; want it gone", name, fi, err)
	}
}

func tarBack(t testing.TB, s *Store, l Layer, want []byte) {
	t.Helper()
	var out bytes.Buffer
	if err := s.LayerTar(t.Context(), l.ChainID, &out); err != nil {
		t.Errorf("LayerTar: %v", err)
	} else if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("LayerTar gives %d bytes that differ from the %d added", out.Len(), len(want))
	}
}

func TestLayerKeepsWhatTarsHave(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		long := strings.Repeat("long/", 30) + strings.Repeat("n", 200)
		when := time.Unix(1700000001, 123456789)
		caps := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
		special := file("special", "special")
		special.Mode, special.Uid, special.Gid, special.ModTime = 0o4751, 4000000000, 12, when
		special.Format = tar.FormatPAX
		special.PAXRecords = map[string]string{
			"SCHILY.xattr.security.capability": caps, "SCHILY.xattr.user.note": "hi",
			"SCHILY.xattr.trusted.overlay.redirect": "/../../etc/shadow",
		}
		sticky := dir("tmp")
		sticky.Mode, sticky.ModTime = 0o1777, when
		sticky.Format = tar.FormatPAX
		in := tarOf(t, sticky, file("tmp/inside", "x"), special, file(long, "deep"), file("empty", ""),
			symlink("link", "/etc/somewhere"), hardlink("again", "special"),
			entry{tar.Header{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o640}, ""},
			entry{tar.Header{Name: "null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}, ""},
			entry{tar.Header{Name: "/absolute", Typeflag: tar.TypeReg, Mode: 0o600}, "abs"},
			file("big", strings.Repeat("0123456789abcdef", 40<<10)),
		)
		l := add(t, s, "", in)
		tarBack(t, s, l, in)
		root := look(t, s, l.ChainID)

		if got := read(t, root, "special"); got != "special" {
			t.Errorf("special = %q", got)
		}
		st := stat(t, root, "special")
		if st.Uid != 4000000000 || st.Gid != 12 || st.Mode&0o7777 != 0o4751 || !time.Unix(st.Mtim.Unix()).Equal(when) {
			t.Errorf("special: owner %d:%d, mode %o, time %v", st.Uid, st.Gid, st.Mode&0o7777, time.Unix(st.Mtim.Unix()))
		}
		if again := stat(t, root, "again"); again.Ino != st.Ino || again.Nlink < 2 {
			t.Errorf("again is inode %d with %d links, want that of special, %d", again.Ino, again.Nlink, st.Ino)
		}
		attrs, err := readXattrs(root, "special")
		if err != nil || attrs["security.capability"] != caps || attrs["user.note"] != "hi" {
			t.Errorf("attributes of special = %q, %v", attrs, err)
		}
		if st := stat(t, root, "tmp"); st.Mode&0o7777 != 0o1777 || !time.Unix(st.Mtim.Unix()).Equal(when) {
			t.Errorf("tmp: mode %o, time %v", st.Mode&0o7777, time.Unix(st.Mtim.Unix()))
		}
		if got := read(t, root, long); got != "deep" {
			t.Errorf("file with a long name = %q", got)
		}
		if st := stat(t, root, strings.TrimSuffix(long, strings.Repeat("n", 200))[:len("long/long")]); st.Mode&0o7777 != 0o755 || st.Uid != 0 {
			t.Errorf("implied directory: mode %o, owner %d", st.Mode&0o7777, st.Uid)
		}
		if target, err := root.Readlink("link"); target != "/etc/somewhere" {
			t.Errorf("link = %q, %v", target, err)
		}
		if st := stat(t, root, "null"); st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
			t.Errorf("null: mode %o, device %x", st.Mode, st.Rdev)
		}
		if st := stat(t, root, "fifo"); st.Mode&unix.S_IFMT != unix.S_IFIFO {
			t.Errorf("fifo: mode %o", st.Mode)
		}
		if got := read(t, root, "absolute"); got != "abs" {
			t.Errorf("absolute = %q", got)
		}
		if got := read(t, root, "big"); len(got) != 640<<10 {
			t.Errorf("big has %d bytes", len(got))
		}
	})
}

func TestLaterEntriesWin(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		in := tarOf(t,
			file("f", "first"), file("f", "second"),
			dir("d"), file("d/x", "x"), file("d", "now a file"),
			file("g", "now a directory"), dir("g"), file("g/y", "y"),
			symlink("s", "f"), file("s", "not through the link"),
			dir("keep"), file("keep/z", "z"), dir("keep"),
		)
		l := add(t, s, "", in)
		tarBack(t, s, l, in)
		root := look(t, s, l.ChainID)
		for name, want := range map[string]string{"f": "second", "d": "now a file", "g/y": "y", "s": "not through the link", "keep/z": "z"} {
			if got := read(t, root, name); got != want {
				t.Errorf("%s = %q, want %q", name, got, want)
			}
		}
	})
}

func TestWhiteoutsHideWhatIsBelow(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		base := add(t, s, "", tarOf(t, dir("a"), file("a/1", "1"), file("a/2", "2"), dir("b"), file("b/1", "1"),
			dir("c"), file("c/old", "o"), dir("d"), file("d/old", "o"), file("e", "e")))
		in := tarOf(t, file("a/.wh.1", ""), file("b/.wh..wh..opq", ""), file("b/new", "n"),
			file(".wh.c", ""), dir("c"), file("c/new", "n"), // removed and made again
			dir("d"), file("d/new", "n"), file(".wh.d", ""), // the same in another order
			file(".wh.e", ""), file(".wh..wh.plnk", ""))
		l := add(t, s, base.ChainID, in)
		tarBack(t, s, l, in)
		root := look(t, s, l.ChainID)
		for _, name := range []string{"a/1", "b/1", "c/old", "d/old", "e", ".wh.e", "b/.wh..wh..opq"} {
			gone(t, root, name)
		}
		for _, name := range []string{"a/2", "b/new", "c/new", "d/new"} {
			read(t, root, name)
		}
	})
}

func TestImpliedDirectoriesKeepTheirAttributes(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		tmp := dir("tmp")
		tmp.Mode, tmp.Gid = 0o1777, 7
		base := add(t, s, "", tarOf(t, tmp))
		l := add(t, s, base.ChainID, tarOf(t, file("tmp/x", "x")))
		if st := stat(t, look(t, s, l.ChainID), "tmp"); st.Mode&0o7777 != 0o1777 || st.Gid != 7 {
			t.Errorf("tmp: mode %o, group %d; want 1777 and 7 as below", st.Mode&0o7777, st.Gid)
		}
	})
}

func TestSparseFilesAreReadInFull(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		in, err := os.ReadFile("testdata/sparse.tar") // GNU tar -S of "begin", a hole, "end"
		if err != nil {
			t.Fatal(err)
		}
		l := add(t, s, "", in)
		tarBack(t, s, l, in)
		got := read(t, look(t, s, l.ChainID), "sparse")
		if len(got) != 1<<20+3 || !strings.HasPrefix(got, "begin\x00") || !strings.HasSuffix(got, "\x00end") {
			t.Errorf("sparse has %d bytes: %.8q…", len(got), got)
		}
		release, err := s.Lease(l.ChainID)
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		if _, err := s.GC(t.Context()); err != nil {
			t.Fatal(err)
		}
		read(t, look(t, s, l.ChainID), "sparse")
	})
}

func TestHostileTarsAreRefusedAndLeaveNothing(t *testing.T) {
	tests := []struct {
		name string
		in   []entry
		says string // the entry that is to blame
	}{
		{"path-climbs-out", []entry{file("ok", "1"), file("../evil", "2")}, `"../evil"`},
		{"path-climbs-out-in-the-middle", []entry{file("a/../../evil", "2")}, `"a/../../evil"`},
		{"path-through-an-absolute-link", []entry{symlink("out", "/var/tmp"), file("out/evil", "2")}, `"out/evil"`},
		{"path-through-a-climbing-link", []entry{dir("a"), symlink("a/out", "../../.."), file("a/out/evil", "2")}, `"a/out/evil"`},
		{"path-through-a-file", []entry{file("f", "1"), file("f/x", "2")}, `"f/x"`},
		{"path-through-a-link-loop", []entry{symlink("l", "l"), file("l/x", "2")}, `"l/x"`},
		{"hard-link-climbs-out", []entry{hardlink("passwd", "../../../../etc/passwd")}, `"passwd"`},
		{"hard-link-through-a-link", []entry{symlink("etc", "/etc"), hardlink("passwd", "etc/passwd")}, `"passwd"`},
		{"hard-link-to-nothing", []entry{hardlink("a", "b")}, `"a"`},
		{"hard-link-to-a-directory", []entry{dir("d"), hardlink("a", "d")}, `"a"`},
		{"whiteout-of-parent", []entry{file("a/.wh...", "")}, `"a/.wh..."`},
		{"whiteout-through-a-link", []entry{symlink("l", "/var"), file("l/.wh.tmp", "")}, `"l/.wh.tmp"`},
		{"root-is-a-file", []entry{file(".", "x")}, `"."`},
		{"larger-than-allowed", []entry{file("bomb", strings.Repeat("\x00", 2<<20))}, `"bomb"`},
	}
	both(t, func(t *testing.T, s *Store) {
		s.maxLayer = 1 << 20
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				_, err := s.AddLayer(t.Context(), "", bytes.NewReader(tarOf(t, tt.in...)))
				if !errdef.Is(err, errdef.Invalid) || !strings.Contains(fmt.Sprint(err), tt.says) {
					t.Errorf("AddLayer = %v; want it invalid, because of %s", err, tt.says)
				}
				checkEmpty(t, s)
			})
		}
	})
}

// checkEmpty fails if the store has a layer, an object or something staged.
func checkEmpty(t *testing.T, s *Store) {
	t.Helper()
	checkStaging(t, s)
	if left, err := os.ReadDir(s.path("layers")); err != nil || len(left) > 0 {
		t.Errorf("layers holds %v, %v", left, err)
	}
	for i := range len(alphabet) {
		if left, err := os.ReadDir(s.objectDir(alphabet[i : i+1])); err != nil || len(left) > 0 {
			t.Errorf("files holds %v, %v", left, err)
		}
	}
}

func TestBrokenStreamsLeaveNothing(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		whole := tarOf(t, file("small", "s"), file("big", strings.Repeat("x", 1<<20)), file("last", "l"))
		broken := errors.New("connection reset")
		for _, at := range []int{0, 100, 600, 2000, 400 << 10, len(whole) - 1024} {
			_, err := s.AddLayer(t.Context(), "", io.MultiReader(bytes.NewReader(whole[:at]), failing{broken}))
			if !errors.Is(err, broken) {
				t.Errorf("AddLayer of %d bytes and an error = %v, want the error", at, err)
			}
			checkEmpty(t, s)
		}
		for _, at := range []int{100, 2000, 400 << 10} { // an end within padding is as good as one after it
			if _, err := s.AddLayer(t.Context(), "", bytes.NewReader(whole[:at])); !errdef.Is(err, errdef.Invalid) {
				t.Errorf("AddLayer of the first %d bytes = %v, want it invalid", at, err)
			}
			checkEmpty(t, s)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.AddLayer(ctx, "", bytes.NewReader(whole)); !errors.Is(err, context.Canceled) {
			t.Errorf("AddLayer with a cancelled context = %v", err)
		}
		checkEmpty(t, s)
	})
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestSameContentIsStoredOnce(t *testing.T) {
	testenv.NeedRoot(t)
	s := openAt(t, testenv.DiskDir(t), Options{})
	if s.links {
		t.Skip("this kernel has no data-only layers (Linux 6.5 or newer)")
	}
	big := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{}).Read(big)
	version := func(at int64) []byte {
		b, sm := file("big", string(big)), file("small", "small")
		b.ModTime, sm.ModTime = time.Unix(at, 0), time.Unix(at, 0)
		return tarOf(t, b, sm, file("other", "small"))
	}
	first := add(t, s, "", version(1))
	before := diskOf(t, s, "files")
	second := add(t, s, "", version(2))
	if first.ChainID == second.ChainID {
		t.Fatal("layers with other times have the same ID")
	}
	if after := diskOf(t, s, "files"); after != before {
		t.Errorf("files/ takes %d bytes after the same content with another time, before %d", after, before)
	}
	if n := objects(t, s); n != 2 {
		t.Errorf("files/ holds %d objects, want 2", n)
	}
	// Nearly the same: equal size, and equal for the first two megabytes.
	nearly := bytes.Clone(big)
	nearly[2<<20]++
	l := add(t, s, "", tarOf(t, file("big", string(nearly))))
	if got := read(t, look(t, s, l.ChainID), "big"); got != string(nearly) {
		t.Errorf("a file that differs in one byte from one of the same size reads wrong")
	}
	// What a metadata inode takes: nothing beside the inode.
	var st unix.Stat_t
	if err := unix.Lstat(s.layerPath(l.ChainID, "diff", "big"), &st); err != nil || st.Blocks != 0 {
		t.Errorf("metadata inode takes %d blocks, %v; want 0", st.Blocks, err)
	}
}

func diskOf(t *testing.T, s *Store, d string) int64 {
	t.Helper()
	n, err := diskUse(s.path(d), map[uint64]bool{})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func objects(t *testing.T, s *Store) int {
	t.Helper()
	n := 0
	for i := range len(alphabet) {
		left, err := os.ReadDir(s.objectDir(alphabet[i : i+1]))
		if err != nil {
			t.Fatal(err)
		}
		n += len(left)
	}
	return n
}

// What lies at the root of a layer must not come between the files of layers
// above and their content, whatever its name: the kernel looks for redirects
// there first.
func TestNamesAtTheRootHideNoContent(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		var odd, files []entry
		for i := range len(alphabet) {
			odd = append(odd, dir(alphabet[i:i+1]), dir("files."+alphabet[i:i+1]))
		}
		for i := range 200 { // objects with every first letter, most likely
			files = append(files, file(fmt.Sprint("file", i), fmt.Sprint("content ", i)))
		}
		below := add(t, s, "", tarOf(t, odd...))
		root := look(t, s, add(t, s, below.ChainID, tarOf(t, files...)).ChainID)
		for i := range 200 {
			if got, err := root.ReadFile(fmt.Sprint("file", i)); err != nil || string(got) != fmt.Sprint("content ", i) {
				t.Fatalf("file%d = %q, %v", i, got, err)
			}
		}
	})
}

// With index=on a write to one name of a shared object shows in all; the
// mounts that we describe must not do that.
func TestWritingInAContainerChangesNoOther(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		l := add(t, s, "", tarOf(t, file("a", "same"), file("b", "same")))
		c := newContainer(t, s, l.ChainID)
		if err := c.root.WriteFile("a", []byte("changed"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := c.root.Chmod("b", 0o600); err != nil {
			t.Fatal(err)
		}
		if got := read(t, c.root, "b"); got != "same" {
			t.Errorf("b = %q after a was written", got)
		}
		root := look(t, s, l.ChainID)
		if a, b := read(t, root, "a"), read(t, root, "b"); a != "same" || b != "same" {
			t.Errorf("the image has a = %q, b = %q after a container wrote", a, b)
		}
		if st := stat(t, root, "b"); st.Mode&0o7777 != 0o644 {
			t.Errorf("the image's b has mode %o after a container's chmod", st.Mode&0o7777)
		}
	})
}

func TestAddingALayerTwiceGivesTheSame(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		in := tarOf(t, file("a", strings.Repeat("a", 1000)))
		done := make(chan oci.ChainID)
		for range 4 {
			go func() {
				l, err := s.AddLayer(context.Background(), "", bytes.NewReader(in))
				if err != nil {
					t.Error(err)
				}
				done <- l.ChainID
			}()
		}
		for range 4 {
			if got, want := <-done, oci.ChainID(oci.FromBytes(in)); got != want {
				t.Errorf("AddLayer = %s, want %s", got, want)
			}
		}
	})
}

// ext4 allows 65,000 links to an inode.
func TestObjectWithAllItsLinksGetsASecond(t *testing.T) {
	testenv.NeedRoot(t)
	s := openAt(t, testenv.DiskDir(t), Options{Links: true})
	var entries []entry
	for i := range 65100 {
		entries = append(entries, file(fmt.Sprintf("d%d/%d", i/5000, i), "same"))
	}
	l := add(t, s, "", tarOf(t, entries...))
	if n := objects(t, s); n != 2 {
		t.Skipf("%d objects for 65100 equal files: this file system has another limit than ext4", n)
	}
	root := look(t, s, l.ChainID)
	for _, name := range []string{"d0/0", "d12/64999", "d13/65099"} {
		if got := read(t, root, name); got != "same" {
			t.Errorf("%s = %q", name, got)
		}
	}
}

func TestUsersOfContainersReadWhatUsersOfTheHostCannot(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		must(t, os.Chmod(s.root, 0o711))
		l := add(t, s, "", testenv.BusyboxTar(t))
		m, err := s.Mount(l.ChainID)
		must(t, err)
		f, err := m.Open()
		must(t, err)
		defer f.Close()
		user := &syscall.Credential{Uid: 1000, Gid: 1000}
		inside := exec.Command("/bin/cat", "/etc/passwd")
		inside.SysProcAttr = &syscall.SysProcAttr{Chroot: overlay.Path(f), Credential: user}
		inside.Dir = "/"
		if out, err := inside.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "root:") {
			t.Errorf("a user in a container reads %q, %v", out, err)
		}
		outside := exec.Command("/bin/cat", s.layerPath(l.ChainID, "diff/etc/passwd"))
		outside.SysProcAttr = &syscall.SysProcAttr{Credential: user}
		if out, err := outside.CombinedOutput(); err == nil {
			t.Errorf("a user of the host reads %q in a layer", out)
		}
	})
}
