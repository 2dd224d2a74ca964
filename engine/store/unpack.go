package store

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// An Unpacked is a layer that has been read before it is known what it lies
// upon, as happens with archives that tell in the end. It is in the store only
// once it is placed; a crash before leaves nothing.
type Unpacked struct {
	DiffID oci.DiffID

	s *Store
	a *adding // nil for a layer that the store has on top of something
}

// Unpack reads an uncompressed tar as AddLayer does. A tar that the store has
// as a layer already is recognized and only read, not unpacked again; that
// layer counts as added now, see Lease. The caller closes what it gets.
func (s *Store) Unpack(ctx context.Context, r io.Reader) (*Unpacked, error) {
	u, err := s.unpack(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("add layer: %w", err)
	}
	return u, nil
}

func (s *Store) unpack(ctx context.Context, r io.Reader) (*Unpacked, error) {
	diff, rest, err := s.recognize(ctx, r)
	if err != nil {
		return nil, err
	}
	if diff != "" {
		return &Unpacked{DiffID: diff, s: s}, nil
	}
	defer rest.Close()
	a, err := s.newAdding()
	if err != nil {
		return nil, err
	}
	if err := a.unpack(ctx, rest); err != nil {
		a.close()
		return nil, err
	}
	return &Unpacked{DiffID: a.diffID, s: s, a: a}, nil
}

// Place adds the layer on top of parent, complete and durable. It may be placed
// again, on top of others.
func (u *Unpacked) Place(ctx context.Context, parent oci.ChainID) (Layer, error) {
	if u.a == nil {
		return u.s.Restack(ctx, parent, u.DiffID)
	}
	l, err := u.a.commit(parent)
	u.Close()
	if err != nil {
		return Layer{}, fmt.Errorf("add layer: %w", err)
	}
	return l, nil
}

// Close removes what was unpacked and not placed.
func (u *Unpacked) Close() {
	if u.a != nil {
		u.a.close()
		u.a = nil
	}
}

// recognizeBy is how many bytes of a tar must be those of a layer for the rest
// to be compared with it, too.
const recognizeBy = 64 << 10

// recognize reads a tar to its end if it is that of a layer, and says of
// which. Else it gives the tar again, from its beginning.
func (s *Store) recognize(ctx context.Context, r io.Reader) (oci.DiffID, io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, recognizeBy)
	head, err := b.Peek(recognizeBy)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", nil, err
	}
	ids, err := s.layerIDs()
	if err != nil {
		return "", nil, err
	}
	for _, id := range ids {
		release, err := s.Lease(id)
		if err != nil {
			return "", nil, err
		}
		if !s.begins(ctx, id, head) {
			release()
			continue
		}
		f := &following{s: s, r: b, buf: make([]byte, chunk)}
		diff, err := f.follow(ctx, id)
		if err != nil || diff != "" {
			release()
			return diff, nil, err
		}
		// What was the same so far comes out of the store.
		rest := s.tarStart(ctx, id, f.same)
		rest.Reader = io.MultiReader(rest.Reader, bytes.NewReader(f.held), b)
		rest.release = release
		return "", rest, nil
	}
	return "", &joined{Reader: b}, nil
}

// A joined is a tar whose first part is read from a layer.
type joined struct {
	io.Reader
	part    *io.PipeReader
	release func()
}

func (j *joined) Close() error {
	if j.part != nil {
		j.part.Close()
		j.release()
	}
	return nil
}

// tarStart gives the first n bytes of a layer's tar.
func (s *Store) tarStart(ctx context.Context, id oci.ChainID, n int64) *joined {
	r, w := io.Pipe()
	go func() {
		err := s.replay(ctx, id, &limited{w, n})
		if errors.Is(err, errEnough) {
			err = nil
		}
		w.CloseWithError(err)
	}()
	return &joined{Reader: r, part: r}
}

// errEnough ends the writing of a tar of which no more is wanted.
var errEnough = errors.New("enough")

// A limited takes n bytes, then ends with errEnough.
type limited struct {
	w io.Writer
	n int64
}

func (l *limited) Write(p []byte) (int, error) {
	n, err := l.w.Write(p[:min(int64(len(p)), l.n)])
	if l.n -= int64(n); err == nil && n < len(p) {
		err = errEnough
	}
	return n, err
}

// begins reports whether a layer's tar has the given beginning.
func (s *Store) begins(ctx context.Context, id oci.ChainID, head []byte) bool {
	m := &matching{left: head}
	err := s.replay(ctx, id, m)
	return len(m.left) == 0 && (err == nil || errors.Is(err, errEnough))
}

// A matching takes bytes as long as they are those that are left.
type matching struct{ left []byte }

func (m *matching) Write(p []byte) (int, error) {
	n := min(len(p), len(m.left))
	if !bytes.Equal(p[:n], m.left[:n]) {
		return 0, errdef.Conflict.Errorf("other bytes")
	}
	if m.left = m.left[n:]; len(m.left) == 0 {
		return n, errEnough
	}
	return n, nil
}

// A following reads a tar beside a layer's toc for as long as they are the
// same. Small files are compared by their digests, big ones with the bytes of
// their objects, so that no byte is lost where they part.
type following struct {
	s    *Store
	r    io.Reader // of the tar
	err  error     // of r
	diff *sideHash
	buf  []byte
	same int64  // bytes that were those of the layer
	held []byte // read after those, and other
}

// errParted says that the tar does not go on as the layer does.
var errParted = errors.New("the tar has other bytes")

// follow gives the layer's diff ID if the tar is the layer's to the end, which
// keeps the layer as one that was added now. The error is the tar's.
func (f *following) follow(ctx context.Context, id oci.ChainID) (oci.DiffID, error) {
	f.diff = startHash()
	err := readToc(f.s.layerPath(id, "toc"), f.raw, func(c content) error {
		if f.err = ctx.Err(); f.err != nil {
			return f.err
		}
		return f.file(c)
	})
	if err == nil {
		err = f.end()
	}
	got := oci.DiffID(f.diff.finish())
	if err != nil {
		return "", f.err
	}
	if l, err := f.s.Layer(id); err != nil || got != l.DiffID { // the disk has damaged it
		return "", nil
	}
	f.s.known(id)
	return got, nil
}

// next reads n bytes, or parts where the tar has no more.
func (f *following) next(n int64) ([]byte, error) {
	p := f.buf[:n]
	got, err := io.ReadFull(f.r, p)
	f.diff.write(p[:got])
	if err == nil {
		return p, nil
	}
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		f.err = err
	}
	return nil, f.parted(p[:got])
}

func (f *following) parted(held []byte) error {
	f.held = held
	return errParted
}

func (f *following) raw(want []byte) error {
	p, err := f.next(int64(len(want)))
	if err != nil {
		return err
	}
	if !bytes.Equal(p, want) {
		return f.parted(p)
	}
	f.same += int64(len(p))
	return nil
}

func (f *following) file(c content) error {
	if c.sparse || c.size == 0 { // its bytes, if any, are in what precedes
		return nil
	}
	if c.size > chunk {
		return f.bigFile(c)
	}
	p, err := f.next(c.size)
	if err != nil {
		return err
	}
	if sha256.Sum256(p) != c.digest {
		return f.parted(p)
	}
	f.same += c.size
	return nil
}

func (f *following) bigFile(c content) error {
	object, err := os.Open(f.s.objectFile(c.object))
	if err != nil {
		return err
	}
	defer object.Close()
	is := make([]byte, chunk)
	for left := c.size; left > 0; {
		p, err := f.next(min(left, chunk))
		if err != nil {
			return err
		}
		n, _ := io.ReadFull(object, is[:len(p)])
		if !bytes.Equal(p, is[:n]) {
			return f.parted(p)
		}
		f.same += int64(len(p))
		left -= int64(len(p))
	}
	return nil
}

// end sees that the tar ends where the layer's does.
func (f *following) end() error {
	p := f.buf[:1]
	n, err := io.ReadFull(f.r, p)
	if errors.Is(err, io.EOF) {
		return nil
	}
	f.err = err
	return f.parted(p[:n])
}
