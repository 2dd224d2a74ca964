package store

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/overlay"
	"github.com/minke-os/minke/oci"
)

// Commit makes a layer of what a container changed, reading through the
// container's mount m, whose upper directory is upper. Processes of the
// container that write meanwhile may leave files torn.
func (s *Store) Commit(ctx context.Context, parent oci.ChainID, upper string, m overlay.Mount) (Layer, error) {
	c, err := compare(upper, m)
	if err != nil {
		return Layer{}, fmt.Errorf("commit: %w", err)
	}
	defer c.close()
	changes, err := c.changes()
	if err != nil {
		return Layer{}, fmt.Errorf("commit: %w", err)
	}
	// Without an index the upper directory's hard links are real ones; with
	// hard-linked layers below, those of other files are not.
	p := packer{root: c.view, linksLie: s.links, upper: upper}
	return s.AddPacked(ctx, parent, func(w io.Writer) error { return p.changes(ctx, w, changes) })
}

// AddPacked adds the layer that pack writes as a tar. Pack is done when it
// returns.
func (s *Store) AddPacked(ctx context.Context, parent oci.ChainID, pack func(io.Writer) error) (Layer, error) {
	return s.addPiped(func(r io.Reader) (Layer, error) { return s.AddLayer(ctx, parent, r) }, pack)
}

// addPiped has add read what pack writes.
func (s *Store) addPiped(add func(io.Reader) (Layer, error), pack func(io.Writer) error) (Layer, error) {
	r, w := io.Pipe()
	packed := make(chan struct{})
	go func() {
		defer close(packed)
		w.CloseWithError(pack(w))
	}()
	l, err := add(r)
	r.CloseWithError(errors.Join(err, context.Canceled)) // lets pack end if AddLayer did not read all
	<-packed
	return l, err
}

// WriteTar writes everything below root as a tar (docker export, cp), in the
// order of names. Sockets are left out.
func (s *Store) WriteTar(ctx context.Context, root *os.Root, w io.Writer) error {
	p := packer{root: root, linksLie: s.links}
	return p.all(ctx, w)
}

// A packer writes files of a mounted tree as tar entries.
type packer struct {
	root *os.Root
	tw   *tar.Writer
	seen map[uint64]string // inode -> the first path of a file with several

	// linksLie is set when files of layers share an inode because their
	// content is the same. Hard links then count only in upper, if given.
	linksLie bool
	upper    string

	buf []byte
}

func (p *packer) begin(w io.Writer) {
	p.tw, p.seen, p.buf = tar.NewWriter(w), map[uint64]string{}, make([]byte, chunk)
}

func (p *packer) changes(ctx context.Context, w io.Writer, changes []Change) error {
	p.begin(w)
	for _, c := range changes {
		if err := ctx.Err(); err != nil {
			return err
		}
		rel := c.Path[1:]
		if c.Kind == Deleted {
			if err := p.whiteout(rel); err != nil {
				return err
			}
			continue
		}
		if err := p.add(rel); err != nil {
			return fmt.Errorf("%s: %w", c.Path, err)
		}
	}
	return p.tw.Close()
}

func (p *packer) whiteout(rel string) error {
	return p.tw.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: path.Join(path.Dir(rel), whiteoutPrefix+path.Base(rel)),
	})
}

func (p *packer) all(ctx context.Context, w io.Writer) error {
	p.begin(w)
	err := fs.WalkDir(p.root.FS(), ".", func(rel string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if rel == "." || d.Type()&fs.ModeSocket != 0 {
			return ctx.Err()
		}
		return errors.Join(ctx.Err(), p.add(rel))
	})
	if err != nil {
		return err
	}
	return p.tw.Close()
}

func (p *packer) add(rel string) error {
	h, st, err := p.header(rel)
	if err != nil {
		return err
	}
	if first, ok := p.linked(rel, st); ok {
		h.Typeflag, h.Linkname, h.Size, h.PAXRecords = tar.TypeLink, first, 0, nil
		return p.tw.WriteHeader(h)
	}
	if h.Typeflag != tar.TypeReg {
		return p.tw.WriteHeader(h)
	}
	f, err := p.root.OpenFile(rel, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := p.tw.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.CopyBuffer(p.tw, onlyReader{io.LimitReader(f, h.Size)}, p.buf)
	if err == nil && n < h.Size {
		return errdef.Busy.Errorf("it shrank while it was read; pause or stop the container")
	}
	return err
}

// onlyReader hides methods by which io.CopyBuffer would not use its buffer.
type onlyReader struct{ io.Reader }

// linked finds the path under which this file has been written already.
func (p *packer) linked(rel string, st *syscall.Stat_t) (string, bool) {
	if st.Nlink < 2 || isDir(st) {
		return "", false
	}
	if p.linksLie {
		var up unix.Stat_t
		if p.upper == "" || unix.Lstat(p.upper+"/"+rel, &up) != nil || up.Nlink < 2 {
			return "", false
		}
	}
	first, ok := p.seen[st.Ino]
	if !ok {
		p.seen[st.Ino] = rel
	}
	return first, ok
}

func (p *packer) header(rel string) (*tar.Header, *syscall.Stat_t, error) {
	st, err := lstat(p.root, rel)
	if err != nil {
		return nil, nil, err
	}
	if st == nil {
		return nil, nil, errdef.Busy.Errorf("it disappeared while the tree was read; pause or stop the container")
	}
	h := &tar.Header{
		Name: rel, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, rel+"/"
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = p.root.Readlink(rel); err != nil {
			return nil, nil, err
		}
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(uint64(st.Rdev))), int64(unix.Minor(uint64(st.Rdev)))
	default:
		return nil, nil, fmt.Errorf("file of unknown type %o", st.Mode&unix.S_IFMT)
	}
	attrs, err := readXattrs(p.root, rel)
	if err != nil {
		return nil, nil, err
	}
	for name, value := range attrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxXattr+name] = value
	}
	return h, st, nil
}

// TempFile gives a file without a name on the store's disk, for what must be
// whole before it can go on. It is gone when closed.
func (s *Store) TempFile() (*os.File, error) {
	return os.OpenFile(s.path("staging"), os.O_RDWR|unix.O_TMPFILE, 0o600)
}
