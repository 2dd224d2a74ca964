package store

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/overlay"
)

// A Change is one difference between a container and its image.
type Change struct {
	Path string // absolute
	Kind ChangeKind
}

type ChangeKind int // as in Docker's GET /containers/{id}/changes

const (
	Modified ChangeKind = iota
	Added
	Deleted
)

// Changes lists what a container changed, sorted by path, by Docker's rules: a
// directory is modified if something below it is, of a deleted directory only
// its own path is listed, and a file that was copied up but has the same
// owner, mode, attributes, size and time is the same.
//
// upper is the container's upper directory and m the mount it belongs to.
func (s *Store) Changes(upper string, m overlay.Mount) ([]Change, error) {
	c, err := compare(upper, m)
	if err != nil {
		return nil, fmt.Errorf("changes: %w", err)
	}
	defer c.close()
	return c.changes()
}

// A comparison reads an upper directory, the view through it and the view
// below it. Content and attributes come from the views only: a file in the
// upper directory may have metadata alone, and a directory may be a redirect,
// which is what rename leaves of one that came from below.
type comparison struct {
	upper  string
	view   *os.Root
	below  *os.Root
	mounts []*os.File
	found  []Change
}

func compare(upper string, m overlay.Mount) (*comparison, error) {
	c := &comparison{upper: upper}
	below := overlay.Mount{Lower: m.Lower, Data: m.Data}
	// The upper directory as one more lower: a second writable mount of it
	// would disturb the container's.
	view := overlay.Mount{Lower: append([]string{upper}, m.Lower...), Data: m.Data}
	var err error
	if c.below, err = c.mount(below); err == nil {
		c.view, err = c.mount(view)
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *comparison) mount(m overlay.Mount) (*os.Root, error) {
	f, err := m.Open()
	if err != nil {
		return nil, err
	}
	c.mounts = append(c.mounts, f)
	return os.OpenRoot(overlay.Path(f))
}

func (c *comparison) close() {
	for _, r := range []*os.Root{c.view, c.below} {
		if r != nil {
			r.Close()
		}
	}
	for _, f := range c.mounts {
		f.Close()
	}
}

func (c *comparison) changes() ([]Change, error) {
	if err := c.dir(".", dirState{upper: true, below: true}); err != nil {
		return nil, fmt.Errorf("changes: %w", err)
	}
	slices.SortFunc(c.found, func(a, b Change) int { return cmp.Compare(a.Path, b.Path) })
	return c.found, nil
}

// A dirState says what is known of a directory in the view.
type dirState struct {
	upper bool // what changed in it is in the upper directory, under the same path
	below bool // it is a directory in the view below too
}

func (c *comparison) note(rel string, k ChangeKind) {
	c.found = append(c.found, Change{"/" + rel, k})
}

func (c *comparison) dir(rel string, st dirState) error {
	names, err := c.names(rel, st)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := c.entry(path.Join(rel, name), st); err != nil {
			return err
		}
	}
	return nil
}

// names are those in a directory that may have changed: what the upper
// directory has or, where that does not tell, everything in either view.
func (c *comparison) names(rel string, st dirState) ([]string, error) {
	if st.upper {
		entries, err := os.ReadDir(c.upper + "/" + rel)
		return entryNames(entries), err
	}
	entries, err := fs.ReadDir(c.view.FS(), rel)
	if err != nil || !st.below {
		return entryNames(entries), err
	}
	old, err := fs.ReadDir(c.below.FS(), rel)
	names := append(entryNames(entries), entryNames(old)...)
	slices.Sort(names)
	return slices.Compact(names), err
}

func entryNames(entries []fs.DirEntry) []string {
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names
}

func (c *comparison) entry(rel string, in dirState) error {
	now, err := lstat(c.view, rel)
	if err != nil {
		return err
	}
	var old *syscall.Stat_t
	if in.below {
		if old, err = lstat(c.below, rel); err != nil {
			return err
		}
	}
	switch {
	case now == nil && old == nil:
		return nil // a whiteout of nothing
	case now == nil:
		c.note(rel, Deleted)
		return nil
	case now.Mode&unix.S_IFMT == unix.S_IFSOCK:
		return nil // lives as long as its process, and no tar can have it
	}
	here := len(c.found)
	if isDir(now) {
		if err := c.dir(rel, c.stateOf(rel, in, old)); err != nil {
			return err
		}
	}
	kind, changed, err := c.judge(rel, in, old, now)
	if err != nil {
		return err
	}
	if changed || len(c.found) > here {
		c.note(rel, kind)
	}
	return nil
}

func (c *comparison) stateOf(rel string, in dirState, old *syscall.Stat_t) dirState {
	st := dirState{upper: in.upper, below: old != nil && isDir(old)}
	if st.upper && (has(c.upper+"/"+rel, "trusted.overlay.redirect") || has(c.upper+"/"+rel, opaqueAttr)) {
		st.upper = false
	}
	return st
}

func (c *comparison) judge(rel string, in dirState, old, now *syscall.Stat_t) (ChangeKind, bool, error) {
	if old == nil {
		return Added, true, nil
	}
	if !in.upper && !isDir(now) {
		return Modified, true, nil // another file, however alike
	}
	if statDiffers(old, now) {
		return Modified, true, nil
	}
	a, err := readXattrs(c.below, rel)
	if err != nil {
		return Modified, false, err
	}
	b, err := readXattrs(c.view, rel)
	return Modified, !maps.Equal(a, b), err
}

func statDiffers(a, b *syscall.Stat_t) bool {
	if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Rdev != b.Rdev {
		return true
	}
	return !isDir(a) && (a.Mtim != b.Mtim || a.Size != b.Size)
}

func isDir(st *syscall.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFDIR }

// lstat gives nil for what does not exist.
func lstat(root *os.Root, rel string) (*syscall.Stat_t, error) {
	fi, err := root.Lstat(rel)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return fi.Sys().(*syscall.Stat_t), nil
}

func has(path, attr string) bool {
	_, err := unix.Lgetxattr(path, attr, nil)
	return err == nil
}

// readXattrs are a file's attributes without trusted ones, which belong to the
// overlay and us.
func readXattrs(root *os.Root, rel string) (map[string]string, error) {
	dir, err := root.Open(path.Dir(rel))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	p := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), path.Base(rel))
	list, err := getXattr(func(buf []byte) (int, error) { return unix.Llistxattr(p, buf) })
	if errors.Is(err, unix.ENOTSUP) || len(list) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: rel, Err: err}
	}
	out := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		if strings.HasPrefix(name, "trusted.") {
			continue
		}
		v, err := getXattr(func(buf []byte) (int, error) { return unix.Lgetxattr(p, name, buf) })
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "getxattr " + name, Path: rel, Err: err}
		}
		out[name] = string(v)
	}
	return out, nil
}

// getXattr asks for the size first, which nearly always is zero.
func getXattr(get func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := get(nil)
		if err != nil || n == 0 {
			return nil, err
		}
		buf := make([]byte, n)
		n, err = get(buf)
		if errors.Is(err, unix.ERANGE) {
			continue // it grew meanwhile
		}
		return buf[:max(n, 0)], err
	}
}
