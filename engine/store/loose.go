package store

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/engine/delta"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// looseBucket names objects that no layer has yet, and when they were made, in
// seconds since 1970. GC spares them for looseFor.
var looseBucket = []byte("loose")

// looseFor is how long an update that broke off keeps what it has brought.
const looseFor = 14 * 24 * time.Hour

// A power cut may take so many bytes of new contents, or what came in so long a
// time, whichever is less: a fast line brings them again, a slow one has not
// brought much. A content that is not complete is lost in any case.
const (
	looseFlush = 16 << 20
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
// that an update that broke off need not bring it again.
type Loose struct {
	s   *Store
	dir string

	mu      sync.Mutex
	objects map[string]bool // pinned; true for what is in dir
	byLink  map[sum]string  // object of a digest among hard-linked layers; nil if not known yet
	pending int64           // bytes that are not synced
	flushed time.Time       // when all were
}

// Loose must be closed.
func (s *Store) Loose() (*Loose, error) {
	dir, err := os.MkdirTemp(s.path("staging"), "loose-")
	if err != nil {
		return nil, err
	}
	return &Loose{s: s, dir: dir, objects: map[string]bool{}, flushed: time.Now()}, nil
}

// Close gives up the contents. Those that are in no layer go at a GC, after
// looseFor.
func (l *Loose) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.flushLocked()
	l.s.unpin(l.objects)
	return errors.Join(err, os.RemoveAll(l.dir))
}

// Done is Close when a layer has the contents.
func (l *Loose) Done() error {
	err := l.s.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(rootBucket).Bucket(looseBucket)
		if b == nil {
			return nil
		}
		for name := range l.objects {
			if err := b.Delete([]byte(name)); err != nil {
				return err
			}
		}
		return nil
	})
	l.s.unpin(l.objects)
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
	missing := errdef.NotFound.Errorf("there is no content %s here", c.Digest)
	d, err := parseSum(c.Digest)
	if err != nil {
		return "", err
	}
	name := d.name()
	if staged, known := l.objects[name]; known {
		if staged {
			return l.dir + "/" + name, nil
		}
		return l.s.objectFile(name), nil
	}
	if there, err := l.s.pin(name, d); err == nil && there {
		l.objects[name] = false
		return l.s.objectFile(name), nil
	}
	l.s.unpin(map[string]bool{name: true})
	if !l.s.links {
		return "", missing
	}
	if l.byLink == nil {
		if l.byLink, err = l.s.linked(); err != nil {
			return "", err
		}
	}
	if name = l.byLink[d]; name == "" {
		return "", missing
	}
	return l.s.objectFile(name), nil
}

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
	if l.pending >= looseFlush || l.pending > 0 && time.Since(l.flushed) >= looseEvery {
		if err := l.flushLocked(); err != nil {
			return nil, err
		}
	}
	path := l.dir + "/new"
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
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
	there, err := f.l.s.pin(name, f.d)
	if err != nil {
		return err
	}
	if _, known := f.l.objects[name]; known {
		f.l.s.unpin(map[string]bool{name: true}) // it is pinned already
	} else {
		f.l.objects[name] = !there
	}
	if there {
		return os.Remove(f.Name())
	}
	f.l.pending += f.w.n
	return os.Rename(f.Name(), f.l.dir+"/"+name)
}

func (l *Loose) flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.flushLocked()
}

// flushLocked makes what is complete outlive a crash.
func (l *Loose) flushLocked() error {
	fresh := map[string]bool{}
	for name, staged := range l.objects {
		if staged {
			fresh[name] = true
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	if err := unix.Syncfs(int(l.s.dir.Fd())); err != nil {
		return os.NewSyscallError("syncfs", err)
	}
	// Recorded first: an object without a record would go at the next GC.
	now := binary.BigEndian.AppendUint64(nil, uint64(time.Now().Unix()))
	err := l.s.db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.Bucket(rootBucket).CreateBucketIfNotExists(looseBucket)
		if err != nil {
			return err
		}
		for name := range fresh {
			if err := b.Put([]byte(name), now); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	dirs, err := l.s.adopt(l.dir, fresh)
	if err != nil {
		return err
	}
	if err := l.s.syncNames(dirs); err != nil {
		return err
	}
	for name := range fresh {
		l.objects[name] = false
	}
	l.pending, l.flushed = 0, time.Now()
	return nil
}

// looseObjects are those that GC spares. It forgets the old ones.
func (s *Store) looseObjects(now time.Time, live map[string]struct{}) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(rootBucket).Bucket(looseBucket)
		if b == nil {
			return nil
		}
		var old [][]byte
		for k, v := range keys(b) {
			if len(v) != 8 || now.Sub(time.Unix(int64(binary.BigEndian.Uint64(v)), 0)) > looseFor {
				old = append(old, []byte(k))
				continue
			}
			live[k] = struct{}{}
		}
		for _, k := range old {
			if err := b.Delete(k); err != nil {
				return err
			}
		}
		return nil
	})
}

// A foreknown is a layer whose digest and contents are known before its tar is
// read: the contents are in the store, by their digests, so that only the tar's
// has to be made again. Who writes the tar tells of a content before its first
// byte is written, and who has read that byte can ask for it.
type foreknown struct {
	target oci.DiffID

	mu     sync.Mutex
	queued []foretold // not yet read, in the order of the tar
}

// A foretold is a content and where in the tar it begins.
type foretold struct {
	at, size int64
	is       sum
	kept     bool // the base has it, and will until the layer is there
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
			prior.tell(foretold{out.n, c.Size, is, kept})
			if kept {
				return os.Open(s.objectFile(is.name()))
			}
			return l.Open(c)
		})
		return errors.Join(err, piped.Flush())
	})
}
