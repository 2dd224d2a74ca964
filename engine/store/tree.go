package store

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/overlay"
)

// Whiteouts as tars have them, by the OCI image specification, layer.md.
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh." // notes of AUFS; all but the next mean nothing to us
	whiteoutOpaque = ".wh..wh..opq"
	opaqueAttr     = "trusted.overlay.opaque"
)

// A tree is a layer's diff directory while it is filled.
//
// Parents are opened through os.Root, which follows only links that stay in
// the layer; everything else happens to one name in such a directory and
// follows nothing. Later entries win over earlier ones, as in tar.
type tree struct {
	root *os.Root

	// Times of directories. Filling a directory changes its time, so it is set
	// when it is left, while its inode is still to be written anyway, and in
	// the end where that was not the last of it.
	times map[string]time.Time

	// Directories that the tar implies but does not describe, and their
	// inodes; they get the attributes that inherit finds.
	implied map[string]uint64

	parent     *os.File // the directory that the last entry was in
	parentPath string
}

func newTree(dir string) (*tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	t := &tree{root: root, times: map[string]time.Time{}, implied: map[string]uint64{}}
	if err := t.imply("."); err != nil {
		root.Close()
		return nil, err
	}
	return t, nil
}

func (t *tree) close() {
	t.forgetParent()
	t.root.Close()
}

// A spot is where an entry goes: a name in an open directory.
type spot struct {
	rel    string
	path   string // through the open directory, so that no link on the way matters
	old    bool   // a directory is there already, which a directory entry may keep
	opaque bool   // a whiteout was there: a directory must hide what is below
}

// place makes everything but regular files.
func (t *tree) place(h *tar.Header) error {
	rel, err := within(h.Name)
	if err != nil {
		return err
	}
	if base := path.Base(rel); strings.HasPrefix(base, whiteoutPrefix) {
		return t.whiteout(rel, base)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return t.directory(rel, h)
	case tar.TypeLink:
		return t.hardLink(rel, h.Linkname)
	}
	return t.make(h, func(p string) error {
		switch h.Typeflag {
		case tar.TypeSymlink:
			return unix.Symlink(h.Linkname, p)
		case tar.TypeFifo:
			return unix.Mknod(p, unix.S_IFIFO|0o600, 0)
		case tar.TypeChar:
			return unix.Mknod(p, unix.S_IFCHR|0o600, device(h))
		case tar.TypeBlock:
			return unix.Mknod(p, unix.S_IFBLK|0o600, device(h))
		}
		return errdef.Invalid.Errorf("entries of type %q cannot be in a layer", h.Typeflag)
	})
}

func device(h *tar.Header) int { return int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))) }

func (t *tree) placeEmpty(h *tar.Header) error {
	if rel, err := within(h.Name); err == nil && strings.HasPrefix(path.Base(rel), whiteoutPrefix) {
		return t.whiteout(rel, path.Base(rel))
	}
	return t.make(h, func(p string) error {
		return unix.Mknod(p, unix.S_IFREG|0o600, 0)
	})
}

func (t *tree) placeMeta(h *tar.Header, c content) error {
	return t.make(h, func(p string) error {
		return overlay.WriteMeta(p, "/"+objectPath(c.object), c.size)
	})
}

// make creates one thing that is not a directory and gives it its attributes.
func (t *tree) make(h *tar.Header, create func(path string) error) error {
	at, err := t.vacate(h.Name)
	if err != nil {
		return err
	}
	if err := create(at.path); err != nil {
		return err
	}
	return setAttributes(at.path, h)
}

// vacate finds the spot for something that is not a directory and removes
// what is there.
func (t *tree) vacate(name string) (spot, error) {
	rel, err := within(name)
	if err != nil {
		return spot{}, err
	}
	at, err := t.spot(rel)
	if err != nil {
		return at, err
	}
	delete(t.times, rel)
	if !at.old {
		return at, nil
	}
	if rel == "." {
		return at, errdef.Invalid.Errorf("the layer's root must be a directory")
	}
	t.forgetParent()
	if err := t.root.RemoveAll(rel); err != nil {
		return at, outside(err)
	}
	return t.spot(rel)
}

// spot opens the parent of rel, making it if need be, and removes what is at
// rel unless it is a directory.
func (t *tree) spot(rel string) (spot, error) {
	dir, err := t.open(path.Dir(rel))
	if err != nil {
		return spot{}, err
	}
	at := spot{rel: rel, path: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), path.Base(rel))}
	var st unix.Stat_t
	err = unix.Lstat(at.path, &st)
	if errors.Is(err, unix.ENOENT) {
		return at, nil
	}
	if err != nil {
		return at, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		at.old = true
		return at, nil
	}
	at.opaque = isWhiteout(&st)
	return at, unix.Unlink(at.path)
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// open gives the directory rel; the next call may close it.
func (t *tree) open(rel string) (*os.File, error) {
	if err := t.leave(rel); err != nil {
		return nil, err
	}
	if t.parent != nil && t.parentPath == rel {
		return t.parent, nil
	}
	f, err := t.root.OpenFile(rel, unix.O_DIRECTORY|os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		if err := t.makeParents(rel); err != nil {
			return nil, err
		}
		f, err = t.root.OpenFile(rel, unix.O_DIRECTORY|os.O_RDONLY, 0)
	}
	if err != nil {
		return nil, outside(err)
	}
	t.forgetParent()
	t.parent, t.parentPath = f, rel
	return f, nil
}

func (t *tree) forgetParent() {
	if t.parent != nil {
		t.parent.Close()
		t.parent = nil
	}
}

// makeParents makes directories that the tar implies but does not have.
func (t *tree) makeParents(rel string) error {
	if rel == "." {
		return nil
	}
	if err := t.makeParents(path.Dir(rel)); err != nil {
		return err
	}
	if fi, err := t.root.Stat(rel); err == nil && fi.IsDir() {
		return nil
	}
	at, err := t.spotBelow(rel)
	if err != nil {
		return err
	}
	if err := unix.Mkdir(at.path, 0o755); err != nil {
		return &os.PathError{Op: "mkdir", Path: rel, Err: err}
	}
	if at.opaque {
		return setOpaque(at.path)
	}
	return t.imply(rel)
}

// spotBelow is spot for a parent, where only a whiteout may be in the way.
func (t *tree) spotBelow(rel string) (spot, error) {
	if fi, err := t.root.Lstat(rel); err == nil && fi.Mode()&fs.ModeCharDevice == 0 {
		return spot{}, errdef.Invalid.Errorf("%q is not a directory", rel)
	}
	return t.spot(rel)
}

// imply notes that nothing describes the directory yet.
func (t *tree) imply(rel string) error {
	fi, err := t.root.Stat(rel)
	if err == nil {
		t.implied[rel] = inode(fi)
	}
	return err
}

// inherit gives directories that the tar does not describe the attributes that
// they have in the layers below, whose directories are listed top first; else
// the topmost layer, whose attributes count, would change them: /tmp must not
// become 0755 because of /tmp/x.
func (t *tree) inherit(below []string) error {
	for _, dir := range below {
		if err := t.inheritFrom(dir); err != nil {
			return err
		}
	}
	return nil
}

// inheritFrom settles what a layer has under the name of an implied directory,
// whatever it is there.
func (t *tree) inheritFrom(dir string) error {
	below, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer below.Close()
	for rel, ino := range t.implied {
		from, err := below.Lstat(rel)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		delete(t.implied, rel)
		if err != nil || !from.IsDir() {
			continue
		}
		// A later entry may have replaced it, or the way to it.
		if fi, err := t.root.Stat(rel); err != nil || inode(fi) != ino {
			continue
		}
		if err := t.copyAttributes(rel, from); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) copyAttributes(rel string, from fs.FileInfo) error {
	st := from.Sys().(*syscall.Stat_t)
	if err := t.root.Chown(rel, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := t.root.Chmod(rel, from.Mode()); err != nil {
		return err
	}
	return t.root.Chtimes(rel, from.ModTime(), from.ModTime())
}

// directory makes or updates a directory.
func (t *tree) directory(rel string, h *tar.Header) error {
	delete(t.implied, rel)
	if rel == "." {
		t.times["."] = h.ModTime
		return setDirAttributes(t.rootPath(), h)
	}
	at, err := t.spot(rel)
	if err != nil {
		return err
	}
	if !at.old {
		if err := unix.Mkdir(at.path, 0o755); err != nil {
			return err
		}
	}
	if at.opaque {
		if err := setOpaque(at.path); err != nil {
			return err
		}
	}
	t.times[rel] = h.ModTime
	return setAttributes(at.path, h)
}

// hardLink makes rel another name of target, which the same layer must have.
func (t *tree) hardLink(rel, target string) error {
	to, err := within(target)
	if err != nil {
		return fmt.Errorf("link to %q: %w", target, err)
	}
	if to == rel {
		return nil
	}
	if fi, err := t.root.Lstat(to); err != nil {
		return errdef.Invalid.Errorf("link to %q: %w", target, outside(err))
	} else if fi.IsDir() {
		return errdef.Invalid.Errorf("link to %q, which is a directory", target)
	}
	if _, err := t.vacate(rel); err != nil {
		return err
	}
	if err := t.root.Link(to, rel); err != nil {
		return outside(err)
	}
	return nil
}

// whiteout hides what layers below have. It never removes what this layer
// has, whatever the order of the entries.
func (t *tree) whiteout(rel, base string) error {
	if base == whiteoutOpaque {
		dir, err := t.open(path.Dir(rel))
		if err != nil {
			return err
		}
		return setOpaque(fmt.Sprintf("/proc/self/fd/%d/.", dir.Fd()))
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil
	}
	if name == "" || name == "." || name == ".." {
		return errdef.Invalid.Errorf("a whiteout of nothing")
	}
	dir, err := t.open(path.Dir(rel))
	if err != nil {
		return err
	}
	p := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
	var st unix.Stat_t
	err = unix.Lstat(p, &st)
	if errors.Is(err, unix.ENOENT) {
		return unix.Mknod(p, unix.S_IFCHR, 0)
	}
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return setOpaque(p)
	}
	return err
}

func setOpaque(p string) error {
	if err := unix.Lsetxattr(p, opaqueAttr, []byte("y"), 0); err != nil {
		return fmt.Errorf("setxattr %s: %w", opaqueAttr, err)
	}
	return nil
}

// leave sets the times of the directories between the last entry's and next.
func (t *tree) leave(next string) error {
	for dir := t.parentPath; dir != next && dir != "." && dir != "" && !strings.HasPrefix(next, dir+"/"); dir = path.Dir(dir) {
		if err := t.setTime(dir); err != nil {
			return err
		}
	}
	return nil
}

// setTime sets a directory's time if it should have another.
func (t *tree) setTime(rel string) error {
	at, known := t.times[rel]
	if !known {
		return nil
	}
	fi, err := t.root.Stat(rel)
	if err == nil && !fi.ModTime().Equal(at) {
		err = t.root.Chtimes(rel, at, at)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("time of %q: %w", rel, err)
	}
	return nil
}

// finish sets the times that are not right yet.
func (t *tree) finish() error {
	t.forgetParent()
	for rel := range t.times {
		if err := t.setTime(rel); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) rootPath() string { return t.root.Name() }

// within is an entry's path in the layer.
func within(name string) (string, error) {
	if len(name) > unix.PathMax {
		return "", errdef.Invalid.Errorf("the path has %d bytes, Linux takes %d", len(name), unix.PathMax)
	}
	rel := path.Clean(strings.TrimLeft(name, "/"))
	if rel == ".." || strings.HasPrefix(rel, "../") {
		return "", errdef.Invalid.Errorf("the path leads out of the layer")
	}
	return rel, nil
}

// outside says what os.Root refused.
func outside(err error) error {
	if strings.Contains(err.Error(), "escapes") {
		return errdef.Invalid.Errorf("the path leads out of the layer by a link: %w", err)
	}
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return errdef.Invalid.Wrap(err)
	}
	return err
}

// setAttributes gives an entry its owner, mode, attributes and time.
func setAttributes(p string, h *tar.Header) error {
	if err := setDirAttributes(p, h); err != nil {
		return err
	}
	return setTime(p, h.ModTime)
}

func setTime(p string, at time.Time) error {
	ts, err := unix.TimeToTimespec(at)
	if err != nil {
		return errdef.Invalid.Errorf("time %v: %w", at, err)
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// setDirAttributes is setAttributes without the time.
func setDirAttributes(p string, h *tar.Header) error {
	if !validID(h.Uid) || !validID(h.Gid) {
		return errdef.Invalid.Errorf("owner %d:%d is not one that Linux has", h.Uid, h.Gid)
	}
	// The order matters: a change of owner clears set-ID bits and capabilities.
	if err := unix.Lchown(p, h.Uid, h.Gid); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Chmod(p, uint32(h.Mode&0o7777)); err != nil {
			return fmt.Errorf("chmod: %w", err)
		}
	}
	for name, value := range xattrs(h) {
		if err := unix.Lsetxattr(p, name, []byte(value), 0); err != nil && !mayLack(name, err) {
			return fmt.Errorf("setxattr %s: %w", name, err)
		}
	}
	return nil
}

// validID excludes -1, with which chown changes nothing.
func validID(id int) bool { return id >= 0 && int64(id) < math.MaxUint32 }

const paxXattr = "SCHILY.xattr."

// xattrs are an entry's attributes, without those that steer the overlay or
// us: a layer from outside must not set them.
func xattrs(h *tar.Header) map[string]string {
	var out map[string]string
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, paxXattr)
		if !ok || strings.HasPrefix(name, "trusted.") {
			continue
		}
		if out == nil {
			out = map[string]string{}
		}
		out[name] = v
	}
	return out
}

// mayLack reports whether a layer is usable without the attribute: labels of a
// security module that this kernel lacks, user attributes on a symlink. A file
// capability is never optional.
func mayLack(name string, err error) bool {
	return name != "security.capability" && (errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM))
}
