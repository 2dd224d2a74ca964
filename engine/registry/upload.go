package registry

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// has reports whether the repository has a blob.
func (s *session) has(ctx context.Context, d oci.Digest) (bool, error) {
	resp, err := s.do(ctx, request{method: http.MethodHead, path: "blobs/" + string(d), want: []int{http.StatusOK, http.StatusNotFound}})
	if err != nil {
		return false, err
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK, nil
}

// mount takes a blob from another repository of the registry. A registry that
// cannot, or may not for this user, begins an upload instead, which nobody
// ends: registries drop such.
func (s *session) mount(ctx context.Context, d oci.Digest, from string) (bool, error) {
	resp, err := s.do(ctx, request{
		method: http.MethodPost, path: "blobs/uploads/", query: url.Values{"mount": {string(d)}, "from": {from}},
		want: []int{http.StatusCreated, http.StatusAccepted, http.StatusNotFound, http.StatusUnauthorized, http.StatusForbidden},
	})
	if err != nil {
		return false, err
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusCreated, nil
}

// begin asks for a place to upload a blob to.
func (s *session) begin(ctx context.Context) (*url.URL, error) {
	resp, err := s.do(ctx, request{method: http.MethodPost, path: "blobs/uploads/", want: []int{http.StatusAccepted}})
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	return location(resp)
}

func location(resp *http.Response) (*url.URL, error) {
	u, err := resp.Location()
	if err != nil {
		return nil, errdef.Unavailable.Errorf("registry %s does not say where to upload to: %w", resp.Request.URL.Host, err)
	}
	return u, nil
}

// end makes what was uploaded, and body, a blob.
func (s *session) end(ctx context.Context, to *url.URL, d oci.Digest, body []byte) error {
	resp, err := s.do(ctx, request{
		method: http.MethodPut, url: to, query: url.Values{"digest": {string(d)}}, body: body,
		header: http.Header{"Content-Type": {"application/octet-stream"}}, want: []int{http.StatusCreated},
	})
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// putBlob makes the repository have a small blob.
func (s *session) putBlob(ctx context.Context, d oci.Digest, body []byte) error {
	if has, err := s.has(ctx, d); has || err != nil {
		return err
	}
	to, err := s.begin(ctx)
	if err != nil {
		return err
	}
	return s.end(ctx, to, d, body)
}

// send uploads a layer, compressing it on the way.
func (s *session) send(ctx context.Context, l *outgoing) (known, error) {
	to, err := s.begin(ctx)
	if err != nil {
		return known{}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	body := startPacking(ctx, s.c.store, l)
	dead := time.AfterFunc(s.c.o.Stall, func() {
		cancel(errdef.Unavailable.Errorf("registry %s took nothing for %s; check the network", s.ep.host, s.c.o.Stall))
	})
	resp, err := s.do(ctx, request{
		method: http.MethodPatch, url: to, stream: taken{body, dead, s.c.o.Stall},
		header: http.Header{"Content-Type": {"application/octet-stream"}}, want: []int{http.StatusAccepted, http.StatusNoContent},
	})
	dead.Stop()
	packed, perr := body.end()
	if perr != nil {
		return known{}, perr // of the store, which is why the rest failed too
	}
	if err != nil {
		return known{}, err
	}
	resp.Body.Close()
	if to, err = location(resp); err != nil {
		return known{}, err
	}
	return packed, s.end(ctx, to, packed.Digest, []byte{})
}

// A packing is a layer that is being compressed as it is read. The same layer
// gives the same bytes each time.
type packing struct {
	*io.PipeReader
	done   chan struct{}
	result known
	err    error // of the store
}

// startPacking starts the goroutine that end waits for.
func startPacking(ctx context.Context, st *store.Store, l *outgoing) *packing {
	r, w := io.Pipe()
	p := &packing{PipeReader: r, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.result, p.err = pack(ctx, st, l, w)
		w.CloseWithError(p.err)
	}()
	return p
}

func pack(ctx context.Context, st *store.Store, l *outgoing, w io.Writer) (known, error) {
	out := &tally{w: w, hash: sha256.New()}
	zip := gzip.NewWriter(out)
	err := st.LayerTar(ctx, l.ChainID, &telling{w: zip, l: l})
	if err == nil {
		err = zip.Close()
	}
	return known{Digest: oci.FromHash(out.hash), Size: out.n, MediaType: dockerLayer}, err
}

// end stops the packing, if it is not at its end, and gives what came of it.
func (p *packing) end() (known, error) {
	p.CloseWithError(errStopped)
	<-p.done
	if errors.Is(p.err, errStopped) {
		return known{}, nil // not the store's fault
	}
	return p.result, p.err
}

var errStopped = errors.New("the upload has ended")

// A tally hashes and counts what goes by.
type tally struct {
	w    io.Writer
	hash hash.Hash
	n    int64
}

func (t *tally) Write(p []byte) (int, error) {
	t.hash.Write(p)
	n, err := t.w.Write(p)
	t.n += int64(n)
	return n, err
}

// telling tells how much of a layer has been read.
type telling struct {
	w    io.Writer
	l    *outgoing
	n    int64
	told time.Time
}

func (t *telling) Write(p []byte) (int, error) {
	n, err := t.w.Write(p)
	t.n += int64(n)
	if now := time.Now(); now.Sub(t.told) >= often {
		t.told = now
		t.l.tell("Pushing", t.n)
	}
	return n, err
}

// taken watches that a connection keeps taking what it is given. While the
// next bytes are being made, it is not to blame.
type taken struct {
	r    io.Reader
	dead *time.Timer
	d    time.Duration
}

func (t taken) Read(p []byte) (int, error) {
	t.dead.Stop()
	n, err := t.r.Read(p)
	if err == nil {
		t.dead.Reset(t.d)
	}
	return n, err
}
