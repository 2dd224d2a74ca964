// Package tarfs moves files between directories that live, such as a
// container's root or a volume, and tar streams. (Layers are package store's.)
//
// Everything happens below an os.Root: no name in a stream and no link that a
// container plants can lead outside of it. Owners, modes, times and extended
// attributes are kept, but for trusted.* ones, which belong to overlay.
package tarfs

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/userns"
)

const paxXattr = "SCHILY.xattr."

// Write writes what is at name below root, with all that is in it, under the
// name as, which begins every name as it is: "." gives "./" and "./file", "/"
// gives "/" and "/file". Sockets are left out, and what is in file systems that
// the kernel makes up, such as /proc, unless it is asked for by name. Owners in
// the tar are those of ids' containers.
func Write(w io.Writer, root *os.Root, name, as string, ids userns.Mapping) error {
	p := packer{tw: tar.NewWriter(w), root: root, ids: ids, links: map[uint64]string{}}
	if err := p.add(path.Clean(name), as); err != nil {
		return err
	}
	return p.tw.Close()
}

type packer struct {
	tw    *tar.Writer
	root  *os.Root
	ids   userns.Mapping
	links map[uint64]string // inode of a file with several names -> the first
	dirs  int               // that were entered
}

// isMadeUp tells of a directory in which nothing is a file: what is in /proc,
// /sys and /dev shows how the container runs, and cannot be read to an end.
func isMadeUp(d *os.File) bool {
	var fs unix.Statfs_t
	if unix.Fstatfs(int(d.Fd()), &fs) != nil {
		return false
	}
	switch fs.Type {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEVPTS_SUPER_MAGIC, mqueueMagic:
		return true
	case unix.TMPFS_MAGIC: // /dev: it has the terminals
		_, err := os.Lstat(fmt.Sprintf("/proc/self/fd/%d/ptmx", d.Fd()))
		return err == nil
	}
	return false
}

const mqueueMagic = 0x19800202 // MQUEUE_MAGIC of the kernel's ipc/mqueue.c

func (p *packer) add(name, as string) error {
	fi, err := p.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && fi.Mode()&fs.ModeSocket != 0 {
		return nil // gone while we looked, or nothing a tar can hold
	}
	if err != nil {
		return err
	}
	if err := p.entry(name, as, fi); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if !fi.IsDir() {
		return nil
	}
	d, err := p.root.Open(name)
	if err != nil {
		return err
	}
	if p.dirs++; p.dirs > 1 && isMadeUp(d) {
		return d.Close()
	}
	names, err := d.Readdirnames(-1)
	d.Close()
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := p.add(path.Join(name, n), strings.TrimSuffix(as, "/")+"/"+n); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) entry(name, as string, fi fs.FileInfo) error {
	link := ""
	if fi.Mode()&fs.ModeSymlink != 0 {
		var err error
		if link, err = p.root.Readlink(name); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(fi, link)
	if err != nil {
		return err
	}
	h.Name, h.Uname, h.Gname = as, "", ""
	uid, gid := p.ids.Container(uint32(h.Uid), uint32(h.Gid))
	h.Uid, h.Gid = int(uid), int(gid)
	if fi.IsDir() {
		h.Name = strings.TrimSuffix(as, "/") + "/"
	}
	if !fi.Mode().IsRegular() {
		return p.tw.WriteHeader(h)
	}
	f, err := p.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Nlink > 1 {
		if first, ok := p.links[st.Ino]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return p.tw.WriteHeader(h)
		}
		p.links[st.Ino] = as
	}
	h.PAXRecords = xattrs(f)
	if err := p.tw.WriteHeader(h); err != nil {
		return err
	}
	// A file may grow or shrink while it is read; the header has promised.
	n, err := io.Copy(p.tw, io.LimitReader(f, h.Size))
	if err != nil || n == h.Size {
		return err
	}
	_, err = io.CopyN(p.tw, zeros{}, h.Size-n)
	return err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func xattrs(f *os.File) map[string]string {
	buf := make([]byte, 4096)
	n, err := unix.Flistxattr(int(f.Fd()), buf)
	if err != nil || n == 0 {
		return nil
	}
	out := map[string]string{}
	value := make([]byte, 64<<10)
	for _, name := range strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if strings.HasPrefix(name, "trusted.") {
			continue
		}
		if n, err := unix.Fgetxattr(int(f.Fd()), name, value); err == nil {
			out[paxXattr+name] = string(value[:n])
		}
	}
	return out
}

// Options of Extract.
type Options struct {
	// KeepType refuses to put a directory in place of a file or the reverse
	// (noOverwriteDirNonDir).
	KeepType bool
	// Owner, if set, gets everything, instead of the owner in the stream.
	Owner *Owner
	// IDs say who the owners in the stream are here.
	IDs userns.Mapping
}

// An Owner is a user and a group.
type Owner struct{ UID, GID int }

// Extract unpacks a tar below dir of root, over what is there. Names that lead
// outside are errdef.Invalid. What was unpacked before an error stays. With a
// mapping it is to be called as its root (userns.Mapping.AsRoot).
func Extract(r io.Reader, root *os.Root, o Options) error {
	x := extractor{root: root, options: o}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return x.finish()
		}
		if err != nil {
			return errdef.Invalid.Errorf("read archive: %w", err)
		}
		if err := x.entry(h, tr); err != nil {
			return fmt.Errorf("unpack %s: %w", h.Name, err)
		}
	}
}

type extractor struct {
	root    *os.Root
	options Options
	dirs    []*tar.Header // whose times are set last
}

func (x *extractor) entry(h *tar.Header, r io.Reader) error {
	name := path.Clean(strings.TrimLeft(h.Name, "/"))
	if name == ".." || strings.HasPrefix(name, "../") {
		return errdef.Invalid.Errorf("the name leads outside of the destination")
	}
	h.Name = name
	if err := x.clear(name, h.Typeflag == tar.TypeDir); err != nil {
		return err
	}
	if dir := path.Dir(name); dir != "." {
		if err := x.root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := x.root.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		x.dirs = append(x.dirs, h)
		return x.attributes(name, h, true)
	case tar.TypeReg:
		if err := x.file(name, h, r); err != nil {
			return err
		}
		return x.attributes(name, h, true)
	case tar.TypeSymlink:
		if err := x.root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return x.attributes(name, h, false)
	case tar.TypeLink:
		return x.root.Link(path.Clean(strings.TrimLeft(h.Linkname, "/")), name)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		if err := x.node(name, h); err != nil {
			return err
		}
		return x.attributes(name, h, true)
	case tar.TypeXGlobalHeader:
		return nil
	}
	return errdef.Invalid.Errorf("entries of type %q are not supported", h.Typeflag)
}

// clear makes room for a new entry.
func (x *extractor) clear(name string, dir bool) error {
	fi, err := x.root.Lstat(name)
	if err != nil || name == "." {
		return nil // nothing there; or making it will say what is wrong
	}
	if fi.IsDir() == dir && dir {
		return nil
	}
	if x.options.KeepType && fi.IsDir() != dir {
		what := "directory with non-directory"
		if dir {
			what = "non-directory with directory"
		}
		return errdef.Invalid.Errorf("cannot overwrite %s", what)
	}
	return x.root.RemoveAll(name)
}

func (x *extractor) file(name string, h *tar.Header, r io.Reader) error {
	f, err := x.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	for key, value := range h.PAXRecords {
		attr, ok := strings.CutPrefix(key, paxXattr)
		if !ok || strings.HasPrefix(attr, "trusted.") {
			continue
		}
		if err := unix.Fsetxattr(int(f.Fd()), attr, []byte(value), 0); err != nil && err != unix.ENOTSUP {
			return fmt.Errorf("set attribute %s: %w", attr, err)
		}
	}
	return f.Close()
}

func (x *extractor) node(name string, h *tar.Header) error {
	parent, err := x.root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer parent.Close()
	mode := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
	return unix.Mknodat(int(parent.Fd()), path.Base(name), mode|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
}

func (x *extractor) attributes(name string, h *tar.Header, follow bool) error {
	to := Owner{h.Uid, h.Gid}
	if x.options.Owner != nil {
		to = *x.options.Owner
	}
	uid, gid, ok := x.options.IDs.Host(uint32(to.UID), uint32(to.GID))
	if !ok {
		return errdef.Invalid.Errorf("user %d or group %d is nobody in the container's user namespace", to.UID, to.GID)
	}
	if err := x.root.Lchown(name, int(uid), int(gid)); err != nil {
		return err
	}
	if !follow {
		return nil
	}
	// After the owner, which takes set-user-ID bits away.
	if err := x.root.Chmod(name, h.FileInfo().Mode()); err != nil {
		return err
	}
	return x.root.Chtimes(name, times(h.AccessTime, h.ModTime), h.ModTime)
}

func times(a, m time.Time) time.Time {
	if a.IsZero() {
		return m
	}
	return a
}

// finish sets times of directories, which filling them changed.
func (x *extractor) finish() error {
	for i := len(x.dirs) - 1; i >= 0; i-- {
		h := x.dirs[i]
		err := x.root.Chtimes(h.Name, times(h.AccessTime, h.ModTime), h.ModTime)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Copy copies the content of directory from into directory to, and gives to
// from's owner and mode.
func Copy(from, to *os.Root) error {
	fi, err := from.Stat(".")
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.CloseWithError(Write(w, from, ".", ".", userns.Mapping{}))
	}()
	err = Extract(r, to, Options{})
	r.CloseWithError(io.ErrClosedPipe)
	<-done
	if err != nil {
		return err
	}
	return to.Chmod(".", fi.Mode())
}
