package store

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/engine/delta"
	"github.com/minke-os/minke/internal/durable"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// The directory loose/ says which objects are there that no layer has yet: a file for
// each Loose has their names, one after the other. GC spares them until looseFor
// after it was last written to. (In minke.db many would stay: it does not shrink,
// and what is read of it counts as the daemon's memory.)

// looseFor is how long an update that broke off keeps what it has brought.
const looseFor = 14 * 24 * time.Hour

// A power cut may take so many bytes of new contents, so many of them, or what
// came in so long a time, whichever is less: a fast line brings them again, a slow
// one has not brought much. A content that is not complete is lost in any case.
const (
	looseFlush = 16 << 20
	looseMany  = 8 << 10
	looseEvery = time.Second
)

// Records are the records of a layer's tar, for a delta. Contents that the tar
// has in another form (sparse files) are left out.
func (s *Store) Records(id oci.ChainID) delta.Records {
	return func(yield func(delta.Record, error) bool) {
		stop := errors.New("stop")
		more := func(r delta.Record) error {
			if !yield(r, nil) {
				return stop
			}
			return nil
		}
		err := readToc(s.layerPath(id, "toc"),
			func(p []byte) error { return more(delta.Record{Bytes: p}) },
			func(c content) error {
				if c.sparse || c.size == 0 {
					return nil
				}
				return more(delta.Record{Content: &delta.Content{Digest: c.digest.digest(), Size: c.size}})
			})
		if err != nil && !errors.Is(err, stop) {
			yield(delta.Record{}, err)
		}
	}
}

// Loose is a way to contents by their digests: those of all layers, and new
// ones that a layer will have soon. Its methods may be called at once; those of
// a content that is being made may not. What it has opened, found or made stays
// until Close; what it has made and synced outlives a crash, for a while, so
// that an update that broke off need not bring it again. It takes no more memory
// for many contents than for few, but for hard-linked layers.
type Loose struct {
	s    *Store
	dir  string
	pins *pinSet

	mu      sync.Mutex
	fresh   []sum          // made, in dir, and not synced
	pending int64          // bytes of them
	flushed time.Time      // when there were none
	byLink  map[sum]string // object of a digest among hard-linked layers; nil if not known yet
}

// Loose must be closed.
func (s *Store) Loose() (*Loose, error) {
	dir, err := os.MkdirTemp(s.path("staging"), "loose-")
	if err != nil {
		return nil, err
	}
	return &Loose{s: s, dir: dir, pins: s.newPinSet(), flushed: time.Now()}, nil
}

// Close gives up the contents. Those that are in no layer go at a GC, after
// looseFor.
func (l *Loose) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.flushLocked()
	l.s.dropPinSet(l.pins)
	return errors.Join(err, os.RemoveAll(l.dir))
}

// Done is Close when a layer has the contents: GC need not spare them any more.
func (l *Loose) Done() error {
	err := l.s.forgetLoose(l.pins)
	l.s.dropPinSet(l.pins)
	return errors.Join(err, os.RemoveAll(l.dir))
}

// Has reports whether a content is there, and keeps it.
func (l *Loose) Has(c delta.Content) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := l.findLocked(c)
	return err == nil
}

// Open opens a content that is there, and keeps it.
func (l *Loose) Open(c delta.Content) (*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	path, err := l.findLocked(c)
	if err != nil {
		return nil, err
	}
	return os.Open(path)
}

func (l *Loose) findLocked(c delta.Content) (string, error) {
	d, err := parseSum(c.Digest)
	if err != nil {
		return "", err
	}
	name := d.name()
	if there, err := l.s.pinIn(l.pins, name, d); err == nil && there {
		return l.s.objectFile(name), nil
	}
	if len(l.fresh) > 0 {
		if there, err := holds(l.staged(name), d); err == nil && there {
			return l.staged(name), nil
		}
	}
	if l.s.links && l.byLink == nil {
		if l.byLink, err = l.s.linked(); err != nil {
			return "", err
		}
	}
	if name = l.byLink[d]; name == "" {
		return "", errdef.NotFound.Errorf("there is no content %s here", c.Digest)
	}
	return l.s.objectFile(name), nil
}

func (l *Loose) staged(name string) string { return l.dir + "/" + name }

func parseSum(digest oci.Digest) (d sum, err error) {
	if _, err := oci.ParseDigest(string(digest)); err != nil {
		return d, err
	}
	_, err = hex.Decode(d[:], []byte(digest.Hex()))
	return d, err
}

// linked finds the objects of hard-linked layers by their contents. The layers
// must be leased by the caller.
func (s *Store) linked() (map[sum]string, error) {
	ids, err := s.layerIDs()
	if err != nil {
		return nil, err
	}
	all := map[sum]string{}
	for _, id := range ids {
		err := readToc(s.layerPath(id, "toc"), func([]byte) error { return nil }, func(c content) error {
			all[c.digest] = c.object
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Create makes a new content. It counts once it is closed; aborted it is as if
// it had never been.
func (l *Loose) Create(c delta.Content) (delta.Sink, error) {
	d, err := parseSum(c.Digest)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pending >= looseFlush || len(l.fresh) >= looseMany || len(l.fresh) > 0 && time.Since(l.flushed) >= looseEvery {
		if err := l.flushLocked(); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(l.dir+"/new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	return &looseFile{File: f, l: l, d: d, w: bigWriter{f: f, room: func(int64) error { return nil }}}, nil
}

type looseFile struct {
	*os.File
	l *Loose
	d sum
	w bigWriter
}

func (f *looseFile) Write(p []byte) (int, error) {
	if err := f.w.write(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (f *looseFile) Abort() {
	f.File.Close()
	os.Remove(f.Name())
}

func (f *looseFile) Close() error {
	err := f.w.finish()
	if err == nil {
		err = setDigest(f.File, f.d)
	}
	if err = errors.Join(err, f.File.Close()); err != nil {
		return err
	}
	f.l.mu.Lock()
	defer f.l.mu.Unlock()
	name := f.d.name()
	there, err := f.l.s.pinIn(f.l.pins, name, f.d)
	if err != nil {
		return err
	}
	if there {
		return os.Remove(f.Name())
	}
	err = unix.Renameat2(unix.AT_FDCWD, f.Name(), unix.AT_FDCWD, f.l.staged(name), unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) {
		return os.Remove(f.Name())
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: f.Name(), New: f.l.staged(name), Err: err}
	}
	f.l.fresh = append(f.l.fresh, f.d)
	f.l.pending += f.w.n
	return nil
}

func (l *Loose) flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.flushLocked()
}

// flushLocked makes what is complete outlive a crash.
func (l *Loose) flushLocked() error {
	if len(l.fresh) == 0 {
		return nil
	}
	if err := unix.Syncfs(int(l.s.dir.Fd())); err != nil {
		return os.NewSyscallError("syncfs", err)
	}
	// Recorded first: an object without a record would go at the next GC.
	if err := l.s.rememberLoose(filepath.Base(l.dir), l.fresh); err != nil {
		return err
	}
	touched := map[string]bool{}
	for _, d := range l.fresh {
		name := d.name()
		if err := l.s.move(l.dir, name, false); err != nil {
			return err
		}
		touched[name[:1]] = true
	}
	if err := l.s.syncNames(touched); err != nil {
		return err
	}
	l.fresh, l.pending, l.flushed = l.fresh[:0], 0, time.Now()
	return nil
}

// rememberLoose adds to a file in loose/. A power cut may leave a part, and lets GC
// have the objects that are not in it.
func (s *Store) rememberLoose(file string, all []sum) error {
	names := make([]byte, 0, len(all)*nameLen)
	for _, d := range all {
		names = append(names, d.name()...)
	}
	s.looseMu.Lock()
	defer s.looseMu.Unlock()
	// Opened each time, for changeLoose may have replaced it.
	f, err := os.OpenFile(s.path("loose", file), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(names)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return durable.SyncDir(s.path("loose"))
}

// forgetLoose forgets those that are in the set, whoever remembered them.
func (s *Store) forgetLoose(in *pinSet) error {
	return s.changeLoose(func(_ time.Time, name []byte) bool { return !in.has(string(name)) })
}

// looseObjects are those that GC spares. It forgets the old ones.
func (s *Store) looseObjects(now time.Time, live map[string]struct{}) error {
	return s.changeLoose(func(written time.Time, name []byte) bool {
		if now.Sub(written) > looseFor {
			return false
		}
		live[string(name)] = struct{}{}
		return true
	})
}

// changeLoose keeps those that are to be remembered further.
func (s *Store) changeLoose(keep func(written time.Time, name []byte) bool) error {
	s.looseMu.Lock()
	defer s.looseMu.Unlock()
	files, err := os.ReadDir(s.path("loose"))
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := s.changeLooseFile(s.path("loose", f.Name()), keep); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) changeLooseFile(path string, keep func(written time.Time, name []byte) bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	each := func(w io.Writer) (kept int64, err error) {
		r := bufio.NewReader(io.NewSectionReader(f, 0, fi.Size()))
		name := make([]byte, nameLen)
		for {
			if _, err := io.ReadFull(r, name); err != nil {
				if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) { // a power cut's
					err = nil
				}
				return kept, err
			}
			if !keep(fi.ModTime(), name) {
				continue
			}
			kept++
			if _, err := w.Write(name); err != nil {
				return kept, err
			}
		}
	}
	kept, err := each(io.Discard)
	switch {
	case err != nil: // a damaged disk; nothing more than this is lost
		s.log.Error("what an unfinished update has brought is forgotten", "why", err)
		return os.Remove(path)
	case kept == 0:
		return os.Remove(path) // after a power cut it may be there again, for its time
	case kept == fi.Size()/nameLen:
		return nil
	}
	left, err := os.CreateTemp(s.path("staging"), "loose-")
	if err != nil {
		return err
	}
	defer left.Close()
	w := bufio.NewWriter(left)
	_, err = each(w)
	if err = errors.Join(err, w.Flush(), left.Sync()); err == nil {
		err = durable.Rename(left.Name(), path)
	}
	if err != nil {
		os.Remove(left.Name())
	}
	return err
}

// A foreknown is a layer whose digest and contents are known before its tar is
// read: the contents are in the store, by their digests, and stay until the layer
// is there, so that only the tar's has to be made again. Who writes the tar tells of
// a content before its first byte is written, and who has read that byte can ask for
// it.
type foreknown struct {
	target oci.DiffID

	mu     sync.Mutex
	queued []foretold // not yet read, in the order of the tar
}

// A foretold is a content and where in the tar it begins.
type foretold struct {
	at, size int64
	is       sum
}

func (f *foreknown) tell(c foretold) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queued = append(f.queued, c)
}

// content is what began at a place of the tar, if it was told of. Places only go
// up.
func (f *foreknown) content(at, size int64) (_ foretold, ok bool) {
	if f == nil {
		return foretold{}, false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.queued) > 0 && f.queued[0].at < at {
		f.queued = f.queued[1:]
	}
	if size == 0 || len(f.queued) == 0 || f.queued[0].at != at || f.queued[0].size != size {
		return foretold{}, false
	}
	return f.queued[0], true
}

// AddDelta adds the layer that a delta makes, on top of parent. skeleton is
// that section of the delta; all its contents are loose or in layers. The layer
// is read back against its digest as it is added; another is refused with
// errdef.Invalid.
func (s *Store) AddDelta(ctx context.Context, parent oci.ChainID, d *delta.Delta, skeleton io.Reader, l *Loose) (Layer, error) {
	var base delta.Records
	if d.Base != "" {
		from, err := s.Find(d.Base)
		if err != nil {
			return Layer{}, err
		}
		release, err := s.Lease(from.ChainID)
		if err != nil {
			return Layer{}, err
		}
		defer release()
		if _, err := s.Layer(from.ChainID); err != nil { // gone before the lease
			return Layer{}, err
		}
		base = s.Records(from.ChainID)
	}
	if err := l.flush(); err != nil {
		return Layer{}, err
	}
	release, err := s.Lease(parent)
	if err != nil {
		return Layer{}, err
	}
	defer release()
	prior := &foreknown{target: d.Target}
	add := func(r io.Reader) (Layer, error) { return s.addLayer(ctx, parent, r, prior) }
	return s.addPiped(add, func(w io.Writer) error {
		piped := bufio.NewWriterSize(w, chunk) // small files one by one would wake the reader thrice each
		out := &counter{w: piped}
		err := d.WriteTar(ctx, out, skeleton, base, func(c delta.Content, kept bool) (io.ReadCloser, error) {
			is, err := parseSum(c.Digest)
			if err != nil {
				return nil, err
			}
			if s.links { // its objects have other names
				return l.Open(c)
			}
			prior.tell(foretold{out.n, c.Size, is})
			if kept { // by the lease of the base
				return os.Open(s.objectFile(is.name()))
			}
			return l.Open(c)
		})
		return errors.Join(err, piped.Flush())
	})
}
