package delta

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path"

	"github.com/minke-os/minke/internal/order"
	"github.com/minke-os/minke/oci"
)

// A Report tells what costs the bytes of a delta.
type Report struct {
	Header, Skeleton int64        // bytes of these
	Contents         Cost         // bytes of all segments
	Count            int          // of new contents
	Files            []FileReport // those of them that cost most, in this order
}

// A FileReport is about one new content.
type FileReport struct {
	Path    string // where it is first; "" if the base that would tell is not known
	Content Content
	Base    Content // what it is made from; empty if it is sent whole
	Opened  bool    // the patch is of the opened form
	Cost    Cost
}

// A Cost is what contents add to a delta, in bytes. What is compressed together
// is divided by what each part would cost alone, so that the sums are right and
// single figures nearly so.
type Cost struct {
	Whole      int64 // bytes of contents that are sent whole
	Operations int64 // of patches: what is copied, and from where
	Changes    int64 // of patches: which copied bytes differ, and by how much
	Added      int64 // of patches: bytes that are not in the base
}

// Total is all of it.
func (c Cost) Total() int64 { return c.Whole + c.Operations + c.Changes + c.Added }

func (c Cost) plus(o Cost) Cost {
	return Cost{c.Whole + o.Whole, c.Operations + o.Operations, c.Changes + o.Changes, c.Added + o.Added}
}

// Inspect tells what costs the bytes of a delta, and which contents cost most, as
// many as are asked for. base gives the records of the layer whose skeleton it
// builds on, and may be nil: files then have no paths. scratch is as for Read. It
// applies nothing, so no content is checked.
func Inspect(ctx context.Context, r io.ReaderAt, scratch Scratch, base func(oci.DiffID) Records, most int) (*Delta, *Report, error) {
	d, err := Read(io.NewSectionReader(r, 0, int64(len(magic)+4+maxHeader)), scratch)
	if err != nil {
		return nil, nil, err
	}
	rep := &Report{Header: d.Skeleton.Offset, Skeleton: d.Skeleton.Length, Count: d.Count()}
	section := func(s Section) io.Reader { return io.NewSectionReader(r, s.Offset, s.Length) }
	for s, err := range d.Segments() {
		if err != nil {
			return nil, nil, err
		}
		c, files, err := s.inspect(ctx, section(s.Section), most)
		if err != nil {
			return nil, nil, invalid("segment", err)
		}
		rep.Contents = rep.Contents.plus(c)
		rep.Files = mostCostly(append(rep.Files, files...), most)
	}
	var records Records
	if d.Base != "" {
		records = base(d.Base)
	}
	if d.Base == "" || records != nil {
		if err := d.name(rep.Files, section(d.Skeleton), records); err != nil {
			return nil, nil, err
		}
	}
	return d, rep, nil
}

// mostCostly are the first n in the order of cost.
func mostCostly(files []FileReport, n int) []FileReport {
	order.By(files, func(a, b FileReport) int { return cmp.Compare(b.Cost.Total(), a.Cost.Total()) })
	return files[:min(len(files), n)]
}

// name fills in paths.
func (d *Delta) name(files []FileReport, skeleton io.Reader, base Records) error {
	at := map[oci.Digest]int{}
	for i, f := range files {
		at[f.Content.Digest] = i
	}
	return d.entries(skeleton, base, func(e *entry) error {
		if e.content == nil {
			return nil
		}
		if i, ok := at[e.content.Digest]; ok && files[i].Path == "" {
			files[i].Path = path.Clean(e.path())
		}
		return nil
	})
}

// Names fills in where a layer has contents, for those in paths that have none.
func Names(layer Records, paths map[oci.Digest]string) error {
	for e, err := range entries(layer) {
		if err != nil {
			return err
		}
		if e.content == nil {
			continue
		}
		if known, wanted := paths[e.content.Digest]; wanted && known == "" {
			paths[e.content.Digest] = path.Clean(e.path())
		}
	}
	return nil
}

// inspect reads a segment, and divides its length among the files in it.
func (s Segment) inspect(ctx context.Context, r io.Reader, most int) (total Cost, files []FileReport, err error) {
	z, err := decoder(r)
	if err != nil {
		return total, nil, err
	}
	defer z.Close()
	in := bufio.NewReaderSize(z, 64<<10)
	var buf patchBuffers
	for c, err := range s.Contents() {
		f := FileReport{Content: c}
		if err == nil {
			err = f.weigh(ctx, in, s.bases, &buf)
		}
		if err != nil {
			return total, nil, fmt.Errorf("content %s: %w", c.Digest, err)
		}
		total = total.plus(f.Cost)
		if files = append(files, f); len(files) >= 2*most {
			files = mostCostly(files, most)
		}
	}
	share := float64(s.Length) / float64(max(total.Total(), 1))
	for i := range files {
		files[i].Cost = files[i].Cost.times(share)
	}
	return total.times(share), mostCostly(files, most), nil
}

// times rounds so that the sum is right.
func (c Cost) times(f float64) (out Cost) {
	var sum, given int64
	for _, part := range []struct{ from, to *int64 }{{&c.Whole, &out.Whole}, {&c.Operations, &out.Operations}, {&c.Changes, &out.Changes}, {&c.Added, &out.Added}} {
		sum += *part.from
		*part.to = int64(math.Round(float64(sum)*f)) - given
		given += *part.to
	}
	return out
}

// weigh reads one content, and compresses its parts by themselves.
func (f *FileReport) weigh(ctx context.Context, r *bufio.Reader, bases list, buf *patchBuffers) error {
	kind, err := r.ReadByte()
	if err != nil {
		return noEOF(err)
	}
	switch kind {
	case whole:
		f.Cost.Whole, err = weighBytes(ctx, r, f.Content.Size, buf)
		f.Cost.Whole++
		return err
	case patched, inside:
		if f.Base, err = readBase(r, bases); err != nil {
			return err
		}
		size := f.Content.Size
		if kind == inside {
			f.Opened = true
			if size, err = number(r, maxOpened); err != nil {
				return err
			}
		}
		return f.weighPatch(ctx, r, size, buf)
	}
	return errors.New("a content of an unknown kind")
}

func (f *FileReport) weighPatch(ctx context.Context, r *bufio.Reader, size int64, buf *patchBuffers) error {
	for ; size > 0; size -= patchWindow {
		if err := buf.read(r, int(min(size, patchWindow))); err != nil {
			return err
		}
		added := 0
		for o := range buf.each() {
			added += o.add
		}
		f.Cost.Operations += cost(buf.ops)
		f.Cost.Changes += cost(append(buf.gaps, buf.diffs...))
		n, err := weighBytes(ctx, r, int64(added), buf)
		if err != nil {
			return err
		}
		f.Cost.Added += n
	}
	return nil
}

// weighBytes reads size bytes and tells what they cost.
func weighBytes(ctx context.Context, r io.Reader, size int64, buf *patchBuffers) (total int64, err error) {
	for size > 0 {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		b := buf.window(int(min(size, patchWindow)))
		if _, err := io.ReadFull(r, b); err != nil {
			return 0, noEOF(err)
		}
		total += cost(b)
		size -= int64(len(b))
	}
	return total, nil
}
