package registry

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

const (
	// chunk is what is handed from the connection to the store at a time.
	chunk = 64 << 10
	// chunks is how many of them may be on the way: how far the connection
	// may be ahead of a store that waits for its disk, 4 MiB.
	chunks = 64
	// partChunks is the same for parts of deltas, which come slower than they
	// are applied and must not take much memory.
	partChunks = 8
)

// A damage is content that is not what its digest says. Another attempt may
// help: lines, disks and caches between here and there flip bits.
type damage struct{ text string }

func (e *damage) Error() string { return e.text }

func damaged(format string, args ...any) error {
	return errdef.Unavailable.Wrap(&damage{fmt.Sprintf(format, args...)})
}

// isDamage reports whether content was not what its digest says.
func isDamage(err error) bool {
	_, ok := errors.AsType[*damage](err)
	return ok
}

// A fetch is a blob on its way. A goroutine gets it, takes up again what broke
// off, and hashes; Read gives the bytes in order, and io.EOF only after all of
// them and their digest were right.
type fetch struct {
	s      *session
	d      descriptor
	report func(got int64) // called by the goroutine

	full, free chan []byte
	made, most int    // chunks
	rest, last []byte // what Read has not given yet, and the chunk it is in
	taken      int64  // bytes that Read gave

	hash hash.Hash
	got  int64
	from int64 // where in the blob it begins; d.Size is what is left from there on
	part bool  // not all of the blob is wanted
	etag string
	url  int // of d.URLs, that is tried

	cancel context.CancelFunc
	err    error // why it ended; nil if all is well. Set before full is closed
}

// fetch starts to get a blob. The caller must stop it.
func (s *session) fetch(ctx context.Context, d descriptor, report func(got int64)) *fetch {
	return s.launch(ctx, &fetch{d: d, most: chunks, report: report})
}

// fetchPart starts to get a part of a blob. There is no digest of that: whoever
// reads it must know what is right.
func (s *session) fetchPart(ctx context.Context, d descriptor, from, n int64, report func(got int64)) *fetch {
	d.Size = n
	return s.launch(ctx, &fetch{d: d, most: partChunks, from: from, part: true, report: report})
}

func (s *session) launch(ctx context.Context, f *fetch) *fetch {
	ctx, f.cancel = context.WithCancel(ctx)
	f.s, f.hash = s, sha256.New()
	f.full, f.free = make(chan []byte, f.most), make(chan []byte, f.most)
	go func() {
		defer close(f.full)
		f.err = f.run(ctx)
	}()
	return f
}

// stop ends the goroutine and waits for it.
func (f *fetch) stop() {
	f.cancel()
	for range f.full {
	}
}

// Read implements io.Reader. It must not be called after stop.
func (f *fetch) Read(p []byte) (int, error) {
	for len(f.rest) == 0 {
		if f.last != nil {
			f.free <- f.last[:0]
			f.last = nil
		}
		b, ok := <-f.full
		if !ok && f.err != nil {
			return 0, f.err
		}
		if !ok {
			return 0, io.EOF
		}
		f.rest, f.last = b, b
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	f.taken += int64(n)
	return n, nil
}

// run gets the whole blob. What counts against it is only how often in a row
// nothing came at all.
func (f *fetch) run(ctx context.Context) error {
	for try := 1; ; try++ {
		before := f.got
		err := f.attempt(ctx)
		if err == nil {
			return f.verify()
		}
		if f.got > before {
			try = 1
		}
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		if !errdef.Is(err, errdef.Unavailable) || isDamage(err) || try == f.s.c.o.Tries {
			return err
		}
		f.url++
		if err := f.s.c.pause(ctx, try, err); err != nil {
			return err
		}
	}
}

func (f *fetch) verify() error {
	if f.part {
		return nil
	}
	if got := oci.FromHash(f.hash); got != f.d.Digest {
		return damaged("%s from %s is damaged: the digest of what came is %s", f.d.Digest, f.s.ep.host, got)
	}
	return nil
}

// attempt goes on from where the last one broke off.
func (f *fetch) attempt(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	resp, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	stall := f.s.c.o.Stall
	dead := time.AfterFunc(stall, func() {
		cancel(errdef.Unavailable.Errorf("registry %s: the connection was silent for %s; check the network", f.s.ep.host, stall))
	})
	defer dead.Stop()
	body := watched{resp.Body, dead, stall}
	if err := f.position(resp, body); err != nil {
		return f.broken(ctx, err)
	}
	for f.got < f.d.Size {
		dead.Stop() // to wait for the disk is no fault of the connection
		p, err := f.chunk(ctx)
		if err != nil {
			return err
		}
		n, err := io.ReadFull(body, p[:min(chunk, f.d.Size-f.got)])
		f.hash.Write(p[:n])
		f.got += int64(n)
		f.report(f.got)
		f.full <- p[:n] // has room for all that were made
		if err != nil {
			return f.broken(ctx, err)
		}
	}
	return nil
}

// broken says how a connection ended before its time.
func (f *fetch) broken(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if isDamage(err) {
		return err
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("the connection ended after %d of %d bytes", f.got, f.d.Size)
	}
	return errdef.Unavailable.Errorf("registry %s: %w; check the network between here and there", f.s.ep.host, err)
}

// chunk is an empty buffer; it waits until the reader has given one back.
func (f *fetch) chunk(ctx context.Context) ([]byte, error) {
	select {
	case p := <-f.free:
		return p[:chunk], nil
	default:
	}
	if f.made < f.most {
		f.made++
		return make([]byte, chunk), nil
	}
	select {
	case p := <-f.free:
		return p[:chunk], nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// open asks for what is still missing.
func (f *fetch) open(ctx context.Context) (*http.Response, error) {
	r := request{method: http.MethodGet, path: "blobs/" + string(f.d.Digest), want: []int{http.StatusOK, http.StatusPartialContent}, header: http.Header{}}
	if len(f.d.URLs) > 0 {
		u, err := url.Parse(f.d.URLs[f.url%len(f.d.URLs)])
		if err != nil || u.Scheme != "http" && u.Scheme != "https" {
			return nil, errdef.Invalid.Errorf("%s is to be fetched from %q, which is not a URL", f.d.Digest, f.d.URLs[f.url%len(f.d.URLs)])
		}
		r.url = u
	}
	if at := f.from + f.got; at > 0 || f.part {
		r.header.Set("Range", fmt.Sprintf("bytes=%d-%d", at, f.from+f.d.Size-1))
		if strings.HasPrefix(f.etag, `"`) { // a weak one may stand for other bytes
			r.header.Set("If-Range", f.etag)
		}
	}
	resp, err := f.s.do(ctx, r)
	if err == nil && f.etag == "" {
		f.etag = resp.Header.Get("ETag")
	}
	return resp, err
}

// position brings an answer to where f is. A server may send all again, though
// it was asked for the rest.
func (f *fetch) position(resp *http.Response, body io.Reader) error {
	at, want := f.from+f.got, f.from+f.d.Size
	if resp.StatusCode == http.StatusPartialContent {
		var from int64
		if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &from); err != nil || from != at {
			return fmt.Errorf("asked for the bytes from %d on, the answer has %q", at, resp.Header.Get("Content-Range"))
		}
		want -= at
	}
	whole := f.part && resp.StatusCode == http.StatusOK
	if resp.ContentLength >= 0 && resp.ContentLength != want && !whole {
		return damaged("%s from %s: %d bytes are to come, not %d", f.d.Digest, f.s.ep.host, resp.ContentLength, want)
	}
	if resp.StatusCode == http.StatusPartialContent {
		return nil
	}
	_, err := io.CopyN(io.Discard, body, at)
	return err
}

// watched is a body whose reads a timer watches.
type watched struct {
	r    io.Reader
	dead *time.Timer
	d    time.Duration
}

func (w watched) Read(p []byte) (int, error) {
	w.dead.Reset(w.d)
	defer w.dead.Stop()
	return w.r.Read(p)
}

// blob fetches a small blob whole.
func (s *session) blob(ctx context.Context, d descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, errdef.Invalid.Errorf("%s has %d bytes, more than the %d that are allowed", d.Digest, d.Size, limit)
	}
	f := s.fetch(ctx, d, func(int64) {})
	defer f.stop()
	return io.ReadAll(f)
}
