package store

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What a layer's directory must hold, worked out from its tar without writing
// anything, so that a check needs no disk.

// An expected is a layer's tree as its tar describes it.
type expected struct {
	entries []*wanted // in the order of the tar

	// replaced is set if an entry took the place of another of a different
	// kind. Then only unpacking shows what is left, and files are not
	// compared; their content is.
	replaced bool
}

// A wanted is one entry of a tar, by its clean path, which may lead through
// links.
type wanted struct {
	rel     string
	kind    byte // as in a tar; 0 for a whiteout
	mode    uint32
	uid     int
	gid     int
	time    time.Time
	rdev    uint64
	link    string // target of a symlink, or of a hard link
	xattrs  map[string]string
	content content // of a regular file

	inode uint64 // of the first place where it was found; hard links have it, too
}

// expect reads the tar that replay writes. Replay tells of each regular file's
// content, in order.
func expect(replay func(w io.Writer, file func(content)) error) (*expected, error) {
	r, w := io.Pipe()
	var contents []content
	var rerr error
	done := make(chan struct{})
	go func() {
		defer close(done)
		rerr = replay(w, func(c content) { contents = append(contents, c) })
		w.CloseWithError(rerr)
	}()
	x := &expected{}
	err := x.read(r)
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	r.CloseWithError(errors.New("the layer's tar cannot be read"))
	<-done
	if err != nil || rerr != nil {
		return nil, errors.Join(err, rerr)
	}
	return x, x.fill(contents)
}

func (x *expected) read(r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return fmt.Errorf("read its tar: %w", err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := x.add(h); err != nil {
			return err
		}
	}
}

func (x *expected) add(h *tar.Header) error {
	rel, err := within(h.Name)
	if err != nil {
		return fmt.Errorf("%q: %w", h.Name, err)
	}
	w := &wanted{rel: rel, kind: h.Typeflag, mode: uint32(h.Mode & 0o7777), uid: h.Uid, gid: h.Gid, time: h.ModTime, xattrs: xattrs(h)}
	switch h.Typeflag {
	case tar.TypeCont, tar.TypeGNUSparse:
		w.kind = tar.TypeReg
	case tar.TypeSymlink:
		w.link = h.Linkname
	case tar.TypeLink:
		if w.link, err = within(h.Linkname); err != nil {
			return fmt.Errorf("%q: %w", h.Name, err)
		}
	case tar.TypeChar, tar.TypeBlock:
		w.rdev = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	}
	x.entries = append(x.entries, w)
	return nil
}

// fill gives regular files their contents and finds the whiteouts.
func (x *expected) fill(contents []content) error {
	for _, w := range x.entries {
		if w.kind == tar.TypeReg {
			if len(contents) == 0 {
				return errors.New("its toc has fewer files than its tar")
			}
			w.content, contents = contents[0], contents[1:]
		}
		base := path.Base(w.rel)
		if !strings.HasPrefix(base, whiteoutPrefix) || w.kind == tar.TypeReg && w.content.size > 0 {
			continue
		}
		w.kind = 0
		switch {
		case base == whiteoutOpaque:
			w.rel, w.link = path.Dir(w.rel), "opaque"
		case strings.HasPrefix(base, whiteoutMeta):
			w.rel = "" // means nothing
		default:
			w.rel = path.Join(path.Dir(w.rel), strings.TrimPrefix(base, whiteoutPrefix))
		}
	}
	if len(contents) > 0 {
		return errors.New("its toc has more files than its tar")
	}
	return nil
}

// A place is where a path leads: a name in a directory, whatever links lead
// there.
type place struct {
	dir  uint64 // inode
	name string
}

// A comparing is an expected tree beside the directory that should hold it.
type comparing struct {
	*expected
	s       *Store
	root    *os.Root
	links   bool
	dirs    map[string]uint64 // inode of the directory that a path leads to
	at      map[place]*wanted // the last entry for a place, hard links resolved
	white   map[place]string  // paths that whiteouts name
	differs func(rel, what string)
}

// compare calls differs for each file that is not what it must be.
func (x *expected) compare(s *Store, dir string, links bool, differs func(rel, what string)) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	c := &comparing{expected: x, s: s, root: root, links: links, differs: differs,
		dirs: map[string]uint64{}, at: map[place]*wanted{}, white: map[place]string{}}
	for _, w := range x.entries {
		c.settle(w)
	}
	if x.replaced {
		return nil
	}
	if err := c.walk(); err != nil {
		return err
	}
	for p, w := range c.at {
		if p.name != "." {
			differs(w.rel, "it is missing")
		}
	}
	for _, rel := range c.white {
		differs(rel, "the whiteout of it is missing")
	}
	return nil
}

// settle puts an entry where it belongs.
func (c *comparing) settle(w *wanted) {
	if w.rel == "" {
		return
	}
	p, err := c.place(w.rel)
	if err != nil {
		c.differs(w.rel, err.Error())
		return
	}
	old := c.at[p]
	switch {
	case w.kind == 0:
		c.white[p] = w.rel
		return
	case w.kind == tar.TypeLink:
		to, err := c.place(w.link)
		if err != nil || c.at[to] == nil {
			c.replaced = true // the target was there when this was unpacked
			return
		}
		w = c.at[to]
	}
	if old != nil && (old.kind == tar.TypeDir) != (w.kind == tar.TypeDir) {
		c.replaced = true
	}
	c.at[p] = w
}

func (c *comparing) place(rel string) (place, error) {
	dir := path.Dir(rel)
	ino, ok := c.dirs[dir]
	if !ok {
		fi, err := c.root.Stat(dir)
		if err != nil {
			return place{}, err
		}
		ino = inode(fi)
		c.dirs[dir] = ino
	}
	return place{ino, path.Base(rel)}, nil
}

// walk goes over the directory and ticks off what is as it must be.
func (c *comparing) walk() error {
	base := c.root.Name()
	parents := map[string]uint64{}
	return filepath.WalkDir(base, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(base, p)
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		if d.IsDir() {
			parents[p] = st.Ino
		}
		at := place{parents[filepath.Dir(p)], d.Name()}
		if rel == "." {
			at = place{st.Ino, "."}
		}
		w := c.at[at]
		delete(c.at, at)
		if w != nil && w.inode == 0 {
			w.inode = st.Ino
		}
		_, white := c.white[at]
		delete(c.white, at)
		if what := c.judge(p, &st, w, white); what != "" {
			c.differs(rel, what)
		}
		return nil
	})
}

// judge says what is wrong with a file, "" if nothing is.
func (c *comparing) judge(p string, st *unix.Stat_t, w *wanted, white bool) string {
	isDirectory := st.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case white && isDirectory && !has(p, opaqueAttr):
		return "it must hide what is below, and does not"
	case w == nil && white && (isWhiteout(st) || isDirectory), w == nil && isDirectory: // one that the tar implies
		return ""
	case w == nil:
		return "it is not in the layer's tar"
	case st.Mode&unix.S_IFMT != fileType(w.kind):
		return fmt.Sprintf("it is of another type: mode %o", st.Mode)
	case st.Ino != w.inode:
		return "it is not the same file as " + w.rel
	case int(st.Uid) != w.uid || int(st.Gid) != w.gid:
		return fmt.Sprintf("its owner is %d:%d, not %d:%d", st.Uid, st.Gid, w.uid, w.gid)
	case w.kind != tar.TypeSymlink && st.Mode&0o7777 != w.mode:
		return fmt.Sprintf("its mode is %o, not %o", st.Mode&0o7777, w.mode)
	case w.rdev != uint64(st.Rdev):
		return fmt.Sprintf("it is device %x, not %x", st.Rdev, w.rdev)
	case anyFileSystemHas(w.time) && int64(st.Mtim.Sec) != w.time.Unix():
		return fmt.Sprintf("its time is %d, not %d", st.Mtim.Sec, w.time.Unix())
	case w.kind == tar.TypeSymlink:
		if to, err := os.Readlink(p); err != nil || to != w.link {
			return fmt.Sprintf("it leads to %q, not to %q", to, w.link)
		}
	case w.kind == tar.TypeReg:
		if what := c.judgeContent(p, st, w.content); what != "" {
			return what
		}
	}
	for name, value := range w.xattrs {
		got, err := getXattr(func(buf []byte) (int, error) { return unix.Lgetxattr(p, name, buf) })
		if mayLack(name, err) || errors.Is(err, unix.ENODATA) && name != "security.capability" {
			continue
		}
		if err != nil || string(got) != value {
			return fmt.Sprintf("its attribute %s is %q, not %q", name, got, value)
		}
	}
	return ""
}

func (c *comparing) judgeContent(p string, st *unix.Stat_t, o content) string {
	if st.Size != o.size {
		return fmt.Sprintf("its size is %d, not %d", st.Size, o.size)
	}
	if o.size == 0 {
		return ""
	}
	if c.links {
		var obj unix.Stat_t
		if err := unix.Lstat(c.s.objectFile(o.object), &obj); err != nil || obj.Ino != st.Ino {
			return "it is not a link to object " + objectPath(o.object)
		}
		return ""
	}
	redirect, err := getXattr(func(buf []byte) (int, error) { return unix.Lgetxattr(p, "trusted.overlay.redirect", buf) })
	if err != nil || !bytes.Equal(redirect, []byte("/"+objectPath(o.object))) || !has(p, "trusted.overlay.metacopy") {
		return fmt.Sprintf("its content is %q, not object %s", redirect, objectPath(o.object))
	}
	return ""
}

func fileType(kind byte) uint32 {
	switch kind {
	case tar.TypeDir:
		return unix.S_IFDIR
	case tar.TypeSymlink:
		return unix.S_IFLNK
	case tar.TypeFifo:
		return unix.S_IFIFO
	case tar.TypeChar:
		return unix.S_IFCHR
	case tar.TypeBlock:
		return unix.S_IFBLK
	}
	return unix.S_IFREG
}

// anyFileSystemHas reports whether a time is in what 32 bits hold: xfs and
// ext4 with small inodes keep no other, and take the nearest they have.
func anyFileSystemHas(t time.Time) bool { return t.Unix() >= -1<<31 && t.Unix() < 1<<31 }

func inode(fi fs.FileInfo) uint64 { return fi.Sys().(*syscall.Stat_t).Ino }
