package build

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/engine/archive"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// memberOf describes a file of a source as it will be in the layer.
func (cp *copying) memberOf(from *source, rel, name string, fi fs.FileInfo) (member, error) {
	var m member
	m.Header = tar.Header{Name: name, Mode: int64(fi.Sys().(*syscall.Stat_t).Mode & 0o7777), ModTime: fi.ModTime(), Format: tar.FormatPAX}
	switch {
	case fi.Mode().IsRegular():
		m.Typeflag, m.Size = tar.TypeReg, fi.Size()
		m.open = func() (io.ReadCloser, error) { return from.root.Open(rel) }
		if err := m.keepCapability(from, rel); err != nil {
			return m, err
		}
	case fi.IsDir():
		m.Typeflag = tar.TypeDir
	case fi.Mode()&fs.ModeSymlink != 0:
		m.Typeflag = tar.TypeSymlink
		var err error
		if m.Linkname, err = from.root.Readlink(rel); err != nil {
			return m, err
		}
	case fi.Mode()&fs.ModeNamedPipe != 0:
		m.Typeflag = tar.TypeFifo
	default:
		return m, errdef.Invalid.Errorf("%s is neither a file nor a directory nor a link", rel)
	}
	cp.own(&m.Header)
	return m, nil
}

// keepCapability takes the one attribute along that programs need to work.
func (m *member) keepCapability(from *source, rel string) error {
	if from.context {
		return nil
	}
	f, err := from.root.Open(rel)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 64)
	n, err := unix.Fgetxattr(int(f.Fd()), "security.capability", buf)
	if err == nil {
		m.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": string(buf[:n])}
	}
	return nil // most files have none, some file systems know none
}

// isArchive reports whether ADD unpacks a file.
func isArchive(open func() (io.ReadCloser, error)) (bool, error) {
	if open == nil {
		return false, nil
	}
	f, err := open()
	if err != nil {
		return false, err
	}
	defer f.Close()
	plain, err := archive.Decompress(f)
	if err != nil {
		return false, nil // it only begins like something compressed
	}
	defer plain.Close()
	head, err := bufio.NewReader(plain).Peek(512)
	return err == nil && archive.IsTar(head) && strings.Trim(string(head), "\x00") != "", nil
}

// unpack writes an archive's entries below its place. What leads out of that
// is refused: only the store guards the layer, so we guard the place.
func (cp *copying) unpack(tw *tar.Writer, m *member) error {
	f, err := m.open()
	if err != nil {
		return err
	}
	defer f.Close()
	plain, err := archive.Decompress(f)
	if err != nil {
		return err
	}
	defer plain.Close()
	tr := tar.NewReader(plain)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return errdef.Invalid.Wrap(err)
		}
		if err := cp.unpackEntry(tw, m.Name, h, tr); err != nil {
			return fmt.Errorf("archive entry %q: %w", h.Name, err)
		}
	}
}

func (cp *copying) unpackEntry(tw *tar.Writer, at string, h *tar.Header, r io.Reader) error {
	name, err := inside(at, h.Name)
	if err != nil {
		return err
	}
	out := *h
	out.Name, out.Format = name, tar.FormatPAX
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeLink:
		if out.Linkname, err = inside(at, h.Linkname); err != nil {
			return err
		}
	case tar.TypeDir:
		if name == at || cp.exists(name) && strings.Trim(h.Name, "./") == "" {
			return nil
		}
	case tar.TypeGNUSparse:
		out.Typeflag = tar.TypeReg
	}
	for k := range out.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return errdef.Unsupported.Errorf("sparse files in archives are not supported by ADD")
		}
	}
	return cp.entry(tw, out, func() (io.ReadCloser, error) { return io.NopCloser(r), nil })
}

func inside(at, name string) (string, error) {
	rel := path.Clean(strings.TrimLeft(name, "/"))
	if rel == ".." || strings.HasPrefix(rel, "../") {
		return "", errdef.Invalid.Errorf("the path leads out of the destination")
	}
	return path.Join(at, rel), nil
}

// owner reads the value of --chown: numbers, or names that the image's passwd
// and group files know. A user alone stands for the group of that name too.
func owner(root *os.Root, spec string) (uid, gid int, err error) {
	user, group, ok := strings.Cut(spec, ":")
	if !ok {
		group = user
	}
	if uid, err = lookup(root, "etc/passwd", "user", user); err != nil {
		return 0, 0, err
	}
	gid, err = lookup(root, "etc/group", "group", group)
	return uid, gid, err
}

func lookup(root *os.Root, file, what, name string) (int, error) {
	if id, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(id), nil
	}
	text, err := root.ReadFile(file)
	if err != nil {
		return 0, errdef.Invalid.Errorf("can't find %s %q: the image has no /%s", what, name, file)
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) < 3 || fields[0] != name {
			continue
		}
		if id, err := strconv.ParseUint(fields[2], 10, 31); err == nil {
			return int(id), nil
		}
	}
	return 0, errdef.Invalid.Errorf("can't find %s %q in the image's /%s", what, name, file)
}

func contentDigest(open func() (io.ReadCloser, error)) (oci.Digest, error) {
	r, err := open()
	if err != nil {
		return "", err
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return "", err
	}
	return oci.FromHash(h), nil
}
