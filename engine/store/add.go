package store

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/durable"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// AddLayer unpacks an uncompressed tar on top of parent. When it returns, the
// layer is complete and durable; when it fails, nothing is left. The reader's
// error, if not io.EOF, is AddLayer's: a reader that checks a digest at its
// end keeps a wrong layer out of the store. Unless leased before, the layer
// may fall to the next GC; see Lease.
//
// A tar that names anything outside its root is refused with errdef.Invalid.
func (s *Store) AddLayer(ctx context.Context, parent oci.ChainID, r io.Reader) (Layer, error) {
	release, err := s.Lease(parent)
	if err != nil {
		return Layer{}, err
	}
	defer release()
	return s.addLayer(ctx, parent, r, nil)
}

// addLayer is AddLayer under a lease of parent. With prior it adds a layer that is
// known beforehand, and no other.
func (s *Store) addLayer(ctx context.Context, parent oci.ChainID, r io.Reader, prior *foreknown) (Layer, error) {
	if parent != "" {
		if _, err := s.Layer(parent); err != nil {
			return Layer{}, fmt.Errorf("add layer: parent: %w", err)
		}
	}
	a, err := s.newAdding()
	if err != nil {
		return Layer{}, fmt.Errorf("add layer: %w", err)
	}
	defer a.close()
	a.prior = prior
	if err := a.unpack(ctx, r); err != nil {
		return Layer{}, fmt.Errorf("add layer: %w", err)
	}
	l, err := a.commit(parent)
	if err != nil {
		return Layer{}, fmt.Errorf("add layer: %w", err)
	}
	return l, nil
}

// An adding is a layer on its way through staging.
type adding struct {
	s      *Store
	dir    string // staging/<random>, with diff, toc and objects
	tree   *tree
	toc    *tocWriter // nil when finished
	in     *recorder
	diff   *sideHash  // of the tar; nil when finished
	diffID oci.DiffID // then
	size   int64      // of all content
	most   int64      // bytes allowed
	limit  int64      // of them, still left
	count  int        // of entries
	fresh  int64      // bytes written since room was last asked for
	big    []content  // to be recorded in the bucket sizes
	prior  *foreknown
	buf    []byte

	// objects that the layer needs, all pinned; true for those that are new
	// and still in dir.
	objects map[string]bool
	batch   []string  // the newest, not begun to be written
	waiting int64     // bytes in them
	begun   time.Time // when the batch before was begun to be written
	writing []string  // that batch
	moved   []string  // those that have been new and are in files/
	done    bool      // the layer has them
}

func (s *Store) newAdding() (*adding, error) {
	dir, err := os.MkdirTemp(s.path("staging"), "layer-")
	if err != nil {
		return nil, err
	}
	a := &adding{s: s, dir: dir,
		begun: time.Now(), diff: startHash(), objects: map[string]bool{}, buf: make([]byte, chunk)}
	if err := a.open(); err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

func (a *adding) open() error {
	if err := a.room(0); err != nil {
		return err
	}
	for _, d := range []string{a.diffDir(), a.objectDir()} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	var err error
	if a.toc, err = createToc(a.dir + "/toc"); err != nil {
		return err
	}
	a.tree, err = newTree(a.diffDir())
	return err
}

func (a *adding) diffDir() string   { return a.dir + "/diff" }
func (a *adding) objectDir() string { return a.dir + "/objects" }

// close removes what is still in staging. It is called whatever happened.
func (a *adding) close() {
	if a.diff != nil {
		a.diff.finish()
	}
	if a.toc != nil {
		a.toc.abort()
	}
	if a.tree != nil {
		a.tree.close()
	}
	a.s.unclaim(a.moved, a.done)
	a.s.unpin(a.objects)
	os.RemoveAll(a.dir) // what stays here Open will remove
}

// below lists the diff directories of a stack, top first.
func (s *Store) below(top oci.ChainID) []string {
	var dirs []string
	for id := top; id != ""; {
		dirs = append(dirs, s.layerPath(id, "diff"))
		l, err := s.Layer(id)
		if err != nil {
			return dirs
		}
		id = l.Parent
	}
	return dirs
}

// A recorder passes a tar on to its parser and notes every byte that is not a
// file's content in the toc.
type recorder struct {
	a       *adding
	src     io.Reader
	content bool  // what is read now is a file's content
	total   int64 // bytes read
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.src.Read(p)
	r.a.diff.write(p[:n])
	r.total += int64(n)
	if r.content {
		return n, err
	}
	if terr := r.a.toc.raw(p[:n]); terr != nil {
		return n, terr
	}
	if lerr := r.a.allow(int64(n)); lerr != nil {
		return n, lerr
	}
	return n, err
}

func (a *adding) unpack(ctx context.Context, r io.Reader) error {
	a.in = &recorder{a: a, src: r}
	tr := tar.NewReader(a.in)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // we check paths ourselves
			return notATar(err)
		}
		if err := a.entry(ctx, h, tr); err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
	}
	// What follows the end mark belongs to the digest too.
	if _, err := io.Copy(io.Discard, a.in); err != nil {
		return err
	}
	if err := a.tree.finish(); err != nil {
		return err
	}
	a.diffID, a.diff, a.buf = oci.DiffID(a.diff.finish()), nil, nil
	err := a.toc.finish()
	a.toc = nil
	return err
}

func notATar(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errdef.Invalid.Wrap(err)
	}
	return err
}

func (a *adding) entry(ctx context.Context, h *tar.Header, r io.Reader) error {
	if a.count++; a.count > maxEntries {
		return errdef.Invalid.Errorf("a layer may have %d entries", maxEntries)
	}
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return a.file(ctx, h, r)
	}
	return a.tree.place(h)
}

func (a *adding) file(ctx context.Context, h *tar.Header, r io.Reader) error {
	if err := a.allow(h.Size); err != nil {
		return err
	}
	c, in, err := a.ingest(ctx, h, r)
	if err != nil {
		return err
	}
	a.size += c.size
	switch {
	case c.size == 0:
		err = a.tree.placeEmpty(h)
	case a.s.links:
		err = a.linkFile(h, &c, in)
	default:
		err = a.metaFile(h, &c, in)
	}
	if err != nil {
		return err
	}
	if c.size >= bigFile {
		a.big = append(a.big, c)
	}
	return a.toc.file(c)
}

// metaFile stores content under its digest and places a metadata inode.
func (a *adding) metaFile(h *tar.Header, c *content, in ingested) error {
	c.object = c.digest.name()
	if in.there { // and pinned, or in a layer that is leased
		if there, err := holds(a.s.objectFile(c.object), c.digest); err != nil || !there {
			return errors.Join(err, errdef.NotFound.Errorf("content %s is not in the store", c.digest.digest()))
		}
		return a.tree.placeMeta(h, *c)
	}
	path, isNew, err := a.find(c.object, c.digest)
	if err == nil && isNew {
		err = a.become(in, path, *c, c.digest)
	} else {
		in.discard()
	}
	if err != nil {
		return err
	}
	return a.tree.placeMeta(h, *c)
}

// find pins an object and says where it is, or has to be made.
func (a *adding) find(name string, d sum) (path string, isNew bool, err error) {
	staged, known := a.objects[name]
	if !known {
		there, err := a.s.pin(name, d)
		a.objects[name] = !there
		if err != nil || !there {
			return a.objectDir() + "/" + name, err == nil, err
		}
	}
	if staged {
		return a.objectDir() + "/" + name, false, nil
	}
	return a.s.objectFile(name), false, nil
}

// commit moves the unpacked layer to its place on top of parent and records it.
func (a *adding) commit(parent oci.ChainID) (Layer, error) {
	l := Layer{DiffID: a.diffID, Parent: parent, Size: a.size, TarSize: a.in.total}
	if a.prior != nil && l.DiffID != a.prior.target {
		return Layer{}, errdef.Invalid.Errorf("the delta makes a layer with the digest %s in place of %s", l.DiffID, a.prior.target)
	}
	l.ChainID = oci.Chain(l.Parent, l.DiffID)
	if a.s.known(l.ChainID) {
		return l, a.mend()
	}
	if err := a.tree.inherit(a.s.below(parent)); err != nil {
		return Layer{}, err
	}
	if err := a.place(); err != nil {
		return Layer{}, err
	}
	if err := os.RemoveAll(a.objectDir()); err != nil {
		return Layer{}, err
	}
	err := a.record(l)
	a.done = err == nil
	return l, err
}

// mend gives the layer, which is there, objects that the disk has lost.
func (a *adding) mend() error {
	if len(a.moved) == 0 && !slices.Contains(slices.Collect(maps.Values(a.objects)), true) {
		return nil
	}
	if err := a.place(); err != nil {
		return err
	}
	a.done = true
	return os.NewSyscallError("syncfs", unix.Syncfs(int(a.s.dir.Fd())))
}

// record makes the layer visible. Of two who add the same layer at once, the
// second finds it there.
func (a *adding) record(l Layer) error {
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	if a.s.knownLocked(l.ChainID) {
		return nil
	}
	// A directory without a record is what an earlier attempt to record, or
	// to remove, has left.
	if err := os.RemoveAll(a.s.layerPath(l.ChainID)); err != nil {
		return err
	}
	if err := durable.Rename(a.dir, a.s.layerPath(l.ChainID)); err != nil {
		return err
	}
	a.s.touchLocked(l.ChainID)
	err := a.s.update(func(t tables) error {
		if l.Parent != "" && t.layers.Get([]byte(l.Parent)) == nil {
			return errdef.NotFound.Errorf("parent layer %s is gone", l.Parent)
		}
		for _, c := range a.big {
			if err := t.sizes.Put(sizeKey(c.size, c.object), nil); err != nil {
				return err
			}
		}
		return put(t.layers, string(l.ChainID), layerRecord{V: version, DiffID: l.DiffID, Parent: l.Parent, Size: l.Size, Tar: l.TarSize, Links: a.s.links})
	})
	if err != nil {
		return errors.Join(err, os.RemoveAll(a.s.layerPath(l.ChainID)))
	}
	return nil
}

// Layer describes a recorded layer; its absence is errdef.NotFound.
func (s *Store) Layer(id oci.ChainID) (Layer, error) {
	var l Layer
	err := s.view(func(t tables) error {
		r, err := t.layer(id)
		l = Layer{DiffID: r.DiffID, ChainID: id, Parent: r.Parent, Size: r.Size, TarSize: r.Tar}
		return err
	})
	return l, err
}

// Find gives some layer with the given diff ID, whatever it lies upon: its tar
// is the same. None is errdef.NotFound.
func (s *Store) Find(diff oci.DiffID) (Layer, error) {
	var l Layer
	err := s.view(func(t tables) error {
		for key := range keys(t.layers) {
			r, err := t.layer(oci.ChainID(key))
			if err == nil && r.DiffID == diff {
				l = Layer{DiffID: diff, ChainID: oci.ChainID(key), Parent: r.Parent, Size: r.Size, TarSize: r.Tar}
				return nil
			}
		}
		return errdef.NotFound.Errorf("no layer with diff ID %s", diff)
	})
	return l, err
}

// Restack makes the layer with the given diff ID on top of parent out of one
// that lies upon another. It writes directories and inodes but no content.
func (s *Store) Restack(ctx context.Context, parent oci.ChainID, diff oci.DiffID) (Layer, error) {
	if l, err := s.Layer(oci.Chain(parent, diff)); err == nil {
		return l, nil
	}
	from, err := s.Find(diff)
	if err != nil {
		return Layer{}, err
	}
	return s.AddPacked(ctx, parent, func(w io.Writer) error { return s.LayerTar(ctx, from.ChainID, w) })
}

// sparse reports whether an entry's bytes in the tar are not its content.
func sparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}
