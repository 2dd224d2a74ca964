package delta

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// Options of Make. The zero value works.
type Options struct {
	// Memory is about how much may be used at once, in bytes; 1 GiB if 0. Files
	// for which that is too little are not patched but sent whole.
	Memory int64
	// Workers is how many files are looked at at once; as many as there are
	// processors if 0.
	Workers int
	// Progress is told of new content that is coded, and of how much there is.
	Progress func(done, total int64)
}

// segmentSize is how many bytes of new content are compressed together. A
// segment is fetched again as a whole.
const segmentSize = 4 << 20

// skeletonWindow is how far back the compression of a skeleton looks. While one is
// read so is a base's table, and a layer is written.
const skeletonWindow = 512 << 10

// selfContained is the size of a skeleton without a base, in bytes, up to which
// it goes without: the delta then fits any image with the same contents.
const selfContained = 1 << 10

// Make writes the delta that makes target from what bases have. open gives the
// bytes of contents of all of them. scratch is written and read once; its size
// is about the delta's. The base whose skeleton the delta builds on is returned,
// or "". See Inspect for what costs its bytes.
func Make(ctx context.Context, w io.Writer, target Layer, bases []Layer, open func(Content) (File, error), scratch io.ReadWriteSeeker, o Options) (base oci.DiffID, err error) {
	if o.Workers == 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.Memory == 0 {
		o.Memory = 1 << 30
	}
	m := &maker{o: o, open: open, header: header{target: target.DiffID, version: 1}}
	if err := m.survey(target, bases); err != nil {
		return "", err
	}
	skeleton, err := m.codeLayer(target, bases)
	if err != nil {
		return "", err
	}
	if err := m.codeSegments(ctx, scratch); err != nil {
		return "", err
	}
	m.skeleton = int64(len(skeleton))
	head, err := m.encode()
	if err != nil {
		return "", err
	}
	if _, err := w.Write(append(head, skeleton...)); err != nil {
		return "", err
	}
	if _, err := scratch.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	_, err = io.Copy(w, scratch)
	return m.base, err
}

type maker struct {
	o    Options
	open func(Content) (File, error)
	header

	had    map[sum]bool // contents of the bases
	news   map[sum]int  // number among contents
	paths  []string     // of contents: where each is first
	guess  *candidates
	common map[int]int // by base layer: entries that it shares with the target

	mu   sync.Mutex
	done int64
}

// survey finds what is new.
func (m *maker) survey(target Layer, bases []Layer) error {
	m.had, m.news = map[sum]bool{}, map[sum]int{}
	m.guess = newCandidates()
	heads := make([]map[headKey]bool, len(bases))
	for i, l := range bases {
		heads[i] = map[headKey]bool{}
		for e, err := range entries(l.Records()) {
			if err != nil {
				return fmt.Errorf("base layer %s: %w", l.DiffID, err)
			}
			heads[i][e.key()] = true
			if e.content != nil {
				d, _ := sumOf(e.content.Digest)
				m.had[d] = true
				m.guess.add(e.path(), *e.content)
			}
		}
	}
	m.common = map[int]int{}
	for e, err := range entries(target.Records()) {
		if err != nil {
			return fmt.Errorf("layer %s: %w", target.DiffID, err)
		}
		m.tarSize += int64(len(e.head))
		key := e.key()
		for i := range bases {
			if heads[i][key] {
				m.common[i]++
			}
		}
		c := e.content
		if c == nil {
			continue
		}
		m.tarSize += c.Size
		if e.padded {
			m.tarSize += int64(padding(c.Size))
		}
		d, ok := sumOf(c.Digest)
		if !ok {
			return errdef.Invalid.Errorf("content with the digest %q", c.Digest)
		}
		if _, known := m.news[d]; !known && !m.had[d] {
			m.news[d] = len(m.contents)
			m.contents = append(m.contents, *c)
			m.paths = append(m.paths, e.path())
		}
	}
	return nil
}

// codeLayer codes the target's skeleton, against the layer that it shares most with
// unless it is small without one.
func (m *maker) codeLayer(target Layer, bases []Layer) ([]byte, error) {
	alone, err := m.codeSkeleton(target, nil)
	if err != nil || len(alone) <= selfContained {
		return alone, err
	}
	best, shared := -1, 0
	for i, n := range m.common {
		if n > shared || n == shared && n > 0 && i < best {
			best, shared = i, n
		}
	}
	if best < 0 {
		return alone, nil
	}
	code, err := m.codeSkeleton(target, &bases[best])
	if err != nil || len(code) >= len(alone) {
		return alone, err
	}
	m.base = bases[best].DiffID
	return code, nil
}

func (m *maker) codeSkeleton(target Layer, base *Layer) ([]byte, error) {
	var out bytes.Buffer
	z, err := encoder(&out, skeletonWindow)
	if err != nil {
		return nil, err
	}
	w := skeletonWriter{w: z, base: map[headKey][]int{}, news: m.news}
	if base != nil {
		for e, err := range entries(base.Records()) {
			if err != nil {
				return nil, err
			}
			key := e.key()
			w.base[key] = append(w.base[key], len(w.bases))
			e.head = nil // that is in the key
			w.bases = append(w.bases, e)
		}
	}
	for e, err := range entries(target.Records()) {
		if err == nil {
			err = w.add(e)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := w.close(); err != nil {
		return nil, err
	}
	err = z.Close()
	return out.Bytes(), err
}

// A segmentCode is a segment in the making.
type segmentCode struct {
	first, count int // of contents
	length       int64
	bases        []Content
}

// codeSegments codes all new contents, in order, several at once.
func (m *maker) codeSegments(ctx context.Context, out io.Writer) error {
	var total int64
	for first := 0; first < len(m.contents); {
		count, size := 0, int64(0)
		for first+count < len(m.contents) && (count == 0 || size+m.contents[first+count].Size <= segmentSize) {
			size += m.contents[first+count].Size
			count++
		}
		m.segments = append(m.segments, segmentCode{first: first, count: count})
		first, total = first+count, total+size
	}
	type result struct {
		data []byte
		err  error
	}
	results := make([]chan result, len(m.segments))
	for i := range results {
		results[i] = make(chan result, 1)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var dispatch sync.WaitGroup
	dispatch.Go(func() {
		var workers errgroup.Group
		workers.SetLimit(m.o.Workers)
		for i := range m.segments {
			if ctx.Err() != nil {
				results[i] <- result{err: ctx.Err()}
				continue
			}
			workers.Go(func() error {
				data, err := m.segment(ctx, &m.segments[i], total)
				results[i] <- result{data, err}
				return nil
			})
		}
		workers.Wait()
	})
	defer dispatch.Wait()
	var failed error
	for i := range results {
		r := <-results[i]
		if failed != nil {
			continue
		}
		if r.err == nil {
			m.segments[i].length = int64(len(r.data))
			_, r.err = out.Write(r.data)
		}
		if failed = r.err; failed != nil {
			cancel()
		}
	}
	return failed
}

// segment codes some contents into one frame.
func (m *maker) segment(ctx context.Context, s *segmentCode, total int64) ([]byte, error) {
	var out bytes.Buffer
	z, err := encoder(&out, Window)
	if err != nil {
		return nil, err
	}
	for i := s.first; i < s.first+s.count; i++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := m.content(z, s, i); err != nil {
			return nil, fmt.Errorf("%s: %w", m.paths[i], err)
		}
		if m.o.Progress != nil {
			m.mu.Lock()
			m.done += m.contents[i].Size
			m.o.Progress(m.done, total)
			m.mu.Unlock()
		}
	}
	err = z.Close()
	return out.Bytes(), err
}

// content codes one content in the way that takes the least space.
func (m *maker) content(w *zstd.Encoder, s *segmentCode, i int) error {
	c := m.contents[i]
	if c.Size > m.largest() {
		return m.copy(w, c)
	}
	data, err := m.read(c)
	if err != nil {
		return err
	}
	all := cost(data)
	best := coded{cost: all}
	form := openable(data)
	for base := range m.guess.of(m.paths[i], c, data, m.readBase) {
		old, err := m.readBase(base.Content)
		if err != nil {
			return err
		}
		if old == nil {
			continue // too large
		}
		best.better(coded{how: patched, base: base.Content}, m.patches(old, data, all))
		if oldForm := openable(old); form != nil && oldForm != nil {
			version := opensDeflate
			if hasFrame(form) || hasFrame(oldForm) {
				version = opensZstd
			}
			best.better(coded{how: inside, version: version, base: base.Content}, m.patches(oldForm, form, all))
		}
		if best.cost < c.Size/16 {
			break // another base would hardly do better
		}
	}
	if best.how == whole {
		_, err := w.Write(append([]byte{whole}, data...))
		return err
	}
	n := slices.Index(s.bases, best.base)
	if n < 0 {
		n, s.bases = len(s.bases), append(s.bases, best.base)
	}
	head := binary.AppendUvarint([]byte{best.how}, uint64(n))
	if best.how == inside {
		head = binary.AppendUvarint(head, uint64(len(form)))
		m.mu.Lock()
		m.version = max(m.version, best.version)
		m.mu.Unlock()
	}
	if _, err = w.Write(head); err != nil {
		return err
	}
	return best.patch.write(w)
}

// coded is how a content is coded best, as far as is known.
type coded struct {
	how     byte
	version int // that has this way, for inside
	base    Content
	patch   patchCode
	cost    int64
}

// better takes another way if that is cheaper with one of the patches.
func (c *coded) better(way coded, patches []patchCode) {
	for _, way.patch = range patches {
		if way.cost = cost(way.patch.b); way.cost < c.cost {
			*c = way
		}
	}
}

// openable is a file's opened form, or nil if it has none that gives it again.
func openable(data []byte) []byte {
	form, ok := opened(nil, data, opensZstd)
	if !ok {
		return nil
	}
	again, err := closed(nil, form, int64(len(data)), opensZstd)
	if err != nil || !bytes.Equal(again, data) {
		return nil
	}
	return form
}

// write ends a block of the frame at each cut.
func (p patchCode) write(w *zstd.Encoder) error {
	from := 0
	for _, to := range p.cuts {
		if _, err := w.Write(p.b[from:to]); err != nil {
			return err
		}
		if err := w.Flush(); err != nil {
			return err
		}
		from = to
	}
	_, err := w.Write(p.b[from:])
	return err
}

// largest is the size of files that are looked at in memory: with the base, the
// patch and their like one needs about four times that.
func (m *maker) largest() int64 { return m.o.Memory / int64(m.o.Workers) / 8 }

// patches are those to choose from. whole is what all of data costs.
func (m *maker) patches(old, data []byte, whole int64) []patchCode {
	copies := newIndex(old, m.largest()*4).match(data)
	fewer := apart(copies, data, old, 8*float64(whole)/float64(max(len(data), 1)))
	if slices.Equal(fewer, copies) {
		return []patchCode{makePatch(data, old, copies)}
	}
	return []patchCode{makePatch(data, old, copies), makePatch(data, old, fewer)}
}

func (m *maker) copy(w io.Writer, c Content) error {
	f, err := m.open(c)
	if err != nil {
		return err
	}
	if _, err = w.Write([]byte{whole}); err == nil {
		_, err = io.CopyN(w, io.NewSectionReader(f, 0, c.Size), c.Size)
	}
	return errors.Join(err, f.Close())
}

// readBase is nil for a base that is too large.
func (m *maker) readBase(c Content) ([]byte, error) {
	if c.Size > m.largest() {
		return nil, nil
	}
	return m.read(c)
}

func (m *maker) read(c Content) ([]byte, error) {
	f, err := m.open(c)
	if err != nil {
		return nil, err
	}
	data := make([]byte, c.Size)
	_, err = io.ReadFull(io.NewSectionReader(f, 0, c.Size), data)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if got := oci.FromBytes(data); got != c.Digest {
		return nil, errdef.Internal.Errorf("content %s has bytes with the digest %s", c.Digest, got)
	}
	return data, nil
}

func encoder(w io.Writer, window int) (*zstd.Encoder, error) {
	return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(window))
}

// scale weighs codes against each other.
var scale = sync.OnceValue(func() *zstd.Encoder {
	z, _ := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithWindowSize(Window)) // the options are right
	return z
})

// cost is about how many bytes a code adds to the delta.
func cost(code []byte) int64 {
	if len(code) == 0 {
		return 0
	}
	return int64(len(scale().EncodeAll(code, nil)))
}
