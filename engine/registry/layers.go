package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/engine/archive"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// parallel is how many layers are on their way at once: one that goes into the
// store, the others as far ahead as their buffers reach. Layers go in bottom
// up, for the store needs the one below. To stack them anew, so that they may
// come in any order, would read and write each of them twice; this has what
// it gives where lines are slow: eight layers of 25 MB in all, at 4 MB/s a
// connection and 40 ms away, come in 8.0 s one by one, 4.2 s with two on their
// way, 3.2 s with three, 2.6 s with four, each of which may take 4 MiB.
const parallel = 3

// A layer is one that has to be fetched.
type layer struct {
	descriptor
	at    int    // in the image, from the bottom
	delta *offer // that makes it of what is here; nil if all of it is fetched

	progress func(Progress)
	complete atomic.Bool // the download, that is

	mu   sync.Mutex
	told time.Time // when count told something
}

func (l *layer) tell(status string, current int64) {
	l.progress(Progress{ID: short(l.Digest), Layer: true, Status: status, Current: current, Total: l.Size})
}

func (l *layer) say(status string) {
	l.progress(Progress{ID: short(l.Digest), Layer: true, Status: status})
}

// often is how often a layer's progress is told.
const often = 100 * time.Millisecond

// count tells progress, but not more often than anybody can see.
func (l *layer) count(status string, current int64) {
	if l.due() {
		l.tell(status, current)
	}
}

func (l *layer) due() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if now.Sub(l.told) < often {
		return false
	}
	l.told = now
	return true
}

// layers brings all layers of the image into the store.
func (p *pulling) layers(ctx context.Context) error {
	present, err := p.present()
	if err != nil {
		return err
	}
	missing, err := p.missing(present)
	if err != nil {
		return err
	}
	if err := p.findDeltas(ctx, missing); err != nil {
		return err
	}
	if err := p.s.c.store.Room(size(missing)); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	q := &queue{p: p, layers: missing}
	defer q.stop()
	chain := oci.ChainOf(p.diffs[:present])
	for i := present; i < len(p.diffs); i++ {
		if len(q.layers) == 0 || q.layers[0].at != i {
			_, err = p.s.c.store.Restack(ctx, chain, p.diffs[i])
		} else {
			err = q.add(ctx, chain)
		}
		if err != nil {
			return fmt.Errorf("layer %s: %w", short(p.manifest.Layers[i].Digest), err)
		}
		chain = oci.Chain(chain, p.diffs[i])
	}
	return nil
}

// size is what layers take on the disk at the least: as much as on the line.
// Content that is here already may make that wrong, but compression makes up
// for it.
func size(layers []*layer) (n int64) {
	for _, l := range layers {
		if l.delta != nil {
			n += l.delta.Size
		} else {
			n += l.Size
		}
	}
	return n
}

// present is how many layers from the bottom are here, and keeps them here.
func (p *pulling) present() (int, error) {
	st := p.s.c.store
	for n := len(p.diffs); n > 0; n-- {
		chain := oci.ChainOf(p.diffs[:n])
		if _, err := st.Layer(chain); err != nil {
			continue
		}
		if err := p.lease(chain); err != nil {
			return 0, err
		}
		if _, err := st.Layer(chain); err == nil { // not gone before the lease
			return n, nil
		}
	}
	return 0, nil
}

// missing lists what must be fetched, and says so. What is here on top of
// something else, or comes twice in the image, need not be.
func (p *pulling) missing(present int) ([]*layer, error) {
	var out []*layer
	coming := map[oci.DiffID]bool{}
	for i, d := range p.manifest.Layers {
		l := &layer{descriptor: d, at: i, progress: p.o.Progress}
		if i < present || coming[p.diffs[i]] {
			l.say("Already exists")
			continue
		}
		if twin, err := p.s.c.store.Find(p.diffs[i]); err == nil {
			if err := p.lease(twin.ChainID); err != nil {
				return nil, err
			}
			if _, err := p.s.c.store.Layer(twin.ChainID); err == nil {
				l.say("Already exists")
				continue
			}
		}
		coming[p.diffs[i]] = true
		l.say("Pulling fs layer")
		out = append(out, l)
	}
	for i := p.downloads(); i < len(out); i++ {
		out[i].say("Waiting")
	}
	return out, nil
}

// downloads is how many layers are on their way at once.
func (p *pulling) downloads() int {
	if p.o.Background {
		return 1
	}
	return p.s.c.o.Downloads
}

// A queue fetches layers ahead of those that are added.
type queue struct {
	p       *pulling
	layers  []*layer // still to be added
	fetches []*fetch // of the first of them
}

func (q *queue) stop() {
	for _, f := range q.fetches {
		if f != nil {
			f.stop()
		}
	}
}

// fill starts fetches until enough are on their way.
func (q *queue) fill(ctx context.Context) {
	for n := len(q.fetches); n < min(q.p.downloads(), len(q.layers)); n++ {
		var f *fetch // not of a layer that a delta makes
		if l := q.layers[n]; l.delta == nil {
			f = q.start(ctx, l)
		}
		q.fetches = append(q.fetches, f)
	}
}

func (q *queue) start(ctx context.Context, l *layer) *fetch {
	return q.p.s.fetch(ctx, l.descriptor, func(got int64) {
		if got < l.Size {
			l.count("Downloading", got)
			return
		}
		l.say("Verifying Checksum")
		l.say("Download complete")
		l.complete.Store(true)
	})
}

// add adds the first layer of the queue, fetching it a second time if it came
// damaged.
func (q *queue) add(ctx context.Context, parent oci.ChainID) error {
	q.fill(ctx)
	l := q.layers[0]
	if l.delta != nil {
		err := q.p.addDelta(ctx, parent, l)
		if err == nil || ctx.Err() != nil || errors.Is(err, unix.ENOSPC) {
			q.layers, q.fetches = q.layers[1:], q.fetches[1:]
			return err
		}
		q.p.s.c.o.Logger.Warn("registry: delta does not help, fetching the whole layer", "image", q.p.ref.Familiar(), "delta", l.delta.Digest, "err", err)
		q.fetches[0] = q.start(ctx, l)
	}
	err := q.p.add(ctx, parent, l, q.fetches[0])
	if isDamage(err) {
		q.p.s.c.o.Logger.Warn("registry: layer came damaged, fetching it again", "image", q.p.ref.Familiar(), "err", err)
		q.fetches[0].stop()
		l.complete.Store(false)
		q.fetches[0] = q.start(ctx, l)
		err = q.p.add(ctx, parent, l, q.fetches[0])
	}
	q.fetches[0].stop()
	q.layers, q.fetches = q.layers[1:], q.fetches[1:]
	return err
}

// add unpacks a layer as it comes.
func (p *pulling) add(ctx context.Context, parent oci.ChainID, l *layer, f *fetch) error {
	src := &source{f: f, l: l}
	plain, err := archive.Decompress(src)
	if err != nil {
		return src.explain(errdef.Invalid.Wrap(err))
	}
	defer plain.Close()
	added, err := p.s.c.store.AddLayer(ctx, parent, verified{plain, src})
	if err != nil {
		return src.explain(err)
	}
	if added.DiffID != p.diffs[l.at] {
		return errdef.Invalid.Errorf("unpacked it is %s, but the image's configuration says %s", added.DiffID, p.diffs[l.at])
	}
	l.tell("Extracting", l.Size)
	l.say("Pull complete")
	return nil
}

// A source is a layer as it comes, still compressed. It tells how much of it
// is unpacked, once all of it is here.
type source struct {
	f   *fetch
	l   *layer
	err error // that Read gave
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.f.Read(p)
	if n > 0 && s.l.complete.Load() {
		s.l.count("Extracting", s.f.taken)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// explain gives the reason of an error that showed in a layer's content: that
// it came damaged, if it did.
func (s *source) explain(err error) error {
	if s.err == nil && errdef.Is(err, errdef.Invalid) {
		io.Copy(io.Discard, s)
	}
	if s.err != nil {
		return s.err
	}
	return err
}

// verified ends with io.EOF only when the compressed layer has been read to
// its end and was right: until then the store must not take it.
type verified struct {
	plain io.Reader
	src   *source
}

func (v verified) Read(p []byte) (int, error) {
	n, err := v.plain.Read(p)
	switch {
	case err == nil:
		return n, nil
	case v.src.err != nil:
		return n, v.src.err
	case !errors.Is(err, io.EOF):
		return n, errdef.Invalid.Errorf("decompress: %w", err)
	}
	if _, err := io.Copy(io.Discard, v.src); err != nil {
		return n, err
	}
	return n, io.EOF
}
