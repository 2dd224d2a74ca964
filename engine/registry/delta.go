package registry

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/minke-os/minke/engine/delta"
	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/order"
	"github.com/minke-os/minke/oci"
)

// Deltas are kept in a registry as an artifact whose subject is the manifest of
// the image that they make, so that it is found from there (OCI distribution
// specification 1.1, "Listing Referrers").

// An offer is a delta that a registry has.
type offer struct {
	descriptor
	target, base oci.DiffID
}

func offerOf(d descriptor) (offer, bool) {
	o := offer{d, oci.DiffID(d.Annotations[delta.TargetLayer]), oci.DiffID(d.Annotations[delta.BaseLayer])}
	_, err := oci.ParseDigest(string(o.target))
	return o, err == nil && d.MediaType == delta.MediaType
}

// maxOffers is how many artifacts are looked at: those whose base image is here
// first.
const maxOffers = 6

// worthIt is how much smaller than a layer a delta must be, as a divisor.
const worthIt = 10

// findDeltas looks for deltas for the layers that are missing, and gives each
// layer the smallest whose base is here. A registry without any costs a request
// or two; that it has none, or cannot be asked, is no error.
func (p *pulling) findDeltas(ctx context.Context, missing []*layer) error {
	if p.o.NoDeltas || len(missing) == 0 {
		return nil
	}
	artifacts, err := p.s.referrers(ctx, p.manifest.digest)
	if err != nil {
		if ctx.Err() == nil {
			p.s.c.o.Logger.Debug("registry: looking for deltas", "image", p.ref.Familiar(), "err", err)
			return nil
		}
		return ctx.Err()
	}
	order.By(artifacts, func(a, b descriptor) int { return cmp.Compare(p.distance(a), p.distance(b)) })
	for _, a := range artifacts[:min(len(artifacts), maxOffers)] {
		m, err := p.s.manifest(ctx, string(a.Digest))
		if err != nil {
			p.s.c.o.Logger.Debug("registry: looking for deltas", "image", p.ref.Familiar(), "err", err)
			continue
		}
		p.consider(missing, m)
	}
	return ctx.Err()
}

// distance orders artifacts by how likely their base is here.
func (p *pulling) distance(d descriptor) int {
	if _, err := p.s.c.store.Image(oci.ImageID(d.Annotations[delta.BaseImage])); err == nil {
		return 0
	}
	return 1
}

func (p *pulling) consider(missing []*layer, m *manifest) {
	for _, d := range m.Layers {
		o, ok := offerOf(d)
		if !ok {
			continue
		}
		if o.base != "" {
			if _, err := p.s.c.store.Find(o.base); err != nil {
				continue
			}
		}
		for _, l := range missing {
			if p.diffs[l.at] == o.target && o.Size < l.Size-l.Size/worthIt && (l.delta == nil || o.Size < l.delta.Size) {
				l.delta = &o
			}
		}
	}
}

// referrers lists the delta artifacts of a manifest.
func (s *session) referrers(ctx context.Context, subject oci.Digest) ([]descriptor, error) {
	resp, err := s.do(ctx, request{
		method: http.MethodGet, path: "referrers/" + string(subject), query: url.Values{"artifactType": {delta.ArtifactType}},
		header: http.Header{"Accept": {ociIndex}}, want: []int{http.StatusOK, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusBadRequest},
	})
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		raw, err := read(resp, maxManifest)
		if err != nil {
			return nil, err
		}
		m, err := parseManifest(raw, ociIndex)
		if err != nil {
			return nil, err
		}
		return deltasOf(m), nil
	}
	resp.Body.Close()
	m, err := s.fallback(ctx, subject)
	if m == nil || err != nil {
		return nil, err
	}
	return deltasOf(m), nil
}

func deltasOf(m *manifest) []descriptor {
	return slices.DeleteFunc(slices.Clone(m.Manifests), func(d descriptor) bool { return d.ArtifactType != delta.ArtifactType })
}

// fallback is the index under the tag by which registries without a list of
// referrers have one; nil without one.
func (s *session) fallback(ctx context.Context, subject oci.Digest) (*manifest, error) {
	tag := fallbackTag(subject)
	if d, err := s.digestOf(ctx, tag); err != nil || d == "" {
		return nil, err
	}
	m, err := s.manifest(ctx, tag)
	if err == nil && !m.isIndex() {
		err = errdef.Invalid.Errorf("%s is no index", tag)
	}
	return m, err
}

func fallbackTag(d oci.Digest) string { return strings.Replace(string(d), ":", "-", 1) }

// addDelta makes a layer of what is here and a delta. Contents that were
// brought before a break are not fetched again.
func (p *pulling) addDelta(ctx context.Context, parent oci.ChainID, l *layer) (err error) {
	st := p.s.c.store
	loose, err := st.Loose()
	if err != nil {
		return err
	}
	defer func() {
		if loose != nil {
			err = errors.Join(err, loose.Close())
		}
	}()
	lists, err := st.TempFile()
	if err != nil {
		return err
	}
	defer lists.Close()
	in := &deltaStream{p: p, l: l, ctx: ctx}
	defer in.stop()
	d, err := delta.Read(in, lists)
	if err != nil {
		return in.explain(err)
	}
	if d.Target != p.diffs[l.at] || d.Base != l.delta.base || d.Size() != l.delta.Size {
		return errdef.Invalid.Errorf("delta %s is not what its annotations say", l.delta.Digest)
	}
	if err := hasBases(d, loose, l.delta.Digest); err != nil {
		return err
	}
	skeleton, err := st.TempFile()
	if err != nil {
		return err
	}
	defer skeleton.Close()
	if err := in.section(d.Skeleton, func(r io.Reader) error {
		_, err := io.Copy(skeleton, r)
		return err
	}); err != nil {
		return err
	}
	var a delta.Applier
	defer a.Close()
	for seg, err := range d.Segments() {
		missing := false
		if err == nil {
			missing, err = seg.Missing(loose.Has)
		}
		if err == nil && missing {
			err = in.section(seg.Section, func(r io.Reader) error {
				return a.Apply(d, seg, r, func(c delta.Content) (delta.File, error) { return loose.Open(c) }, loose.Create)
			})
		}
		if err != nil {
			return err
		}
	}
	in.stop()
	a.Close()
	l.say("Download complete")
	if _, err := skeleton.Seek(0, io.SeekStart); err != nil {
		return err
	}
	l.say("Extracting")
	added, err := st.AddDelta(ctx, parent, d, skeleton, loose)
	if err != nil {
		return err
	}
	if added.DiffID != p.diffs[l.at] {
		return errdef.Invalid.Errorf("delta %s makes %s", l.delta.Digest, added.DiffID)
	}
	err = loose.Done()
	loose = nil
	l.say("Pull complete")
	return err
}

// hasBases reports as an error that something is not here which segments that
// have to be fetched build on.
func hasBases(d *delta.Delta, loose *store.Loose, name oci.Digest) error {
	for seg, err := range d.Segments() {
		missing := false
		if err == nil {
			missing, err = seg.Missing(loose.Has)
		}
		if err != nil {
			return err
		}
		if !missing {
			continue
		}
		for base, err := range seg.Bases() {
			if err != nil {
				return err
			}
			if !loose.Has(base) {
				return errdef.NotFound.Errorf("content %s, which delta %s builds on, is not here", base.Digest, name)
			}
		}
	}
	return nil
}

// A FoundDelta is a delta that a registry has of an image.
type FoundDelta struct {
	Digest oci.Digest  // of its manifest
	Base   oci.ImageID // that it was made from
	Files  []*os.File  // of its layers; closed when the callback returns
}

// Deltas fetches all deltas that an image's own registry has of it, one after the
// other.
func (c *Client) Deltas(ctx context.Context, ref oci.Reference, creds Credentials, p oci.Platform, use func(FoundDelta) error) error {
	return c.at(ctx, c.origin(ctx, ref.Domain), ref, creds, func(ctx context.Context, s *session) error {
		m, err := s.manifest(ctx, tagOrDigest(ref))
		if err == nil {
			m, err = s.image(ctx, m, p)
		}
		if err != nil {
			return err
		}
		artifacts, err := s.referrers(ctx, m.digest)
		for _, a := range artifacts {
			if err == nil {
				err = s.useDelta(ctx, a, use)
			}
		}
		return err
	})
}

func (s *session) useDelta(ctx context.Context, d descriptor, use func(FoundDelta) error) error {
	m, err := s.manifest(ctx, string(d.Digest))
	if err != nil {
		return err
	}
	found := FoundDelta{Digest: d.Digest, Base: oci.ImageID(m.Annotations[delta.BaseImage])}
	defer func() {
		for _, f := range found.Files {
			f.Close()
		}
	}()
	for _, l := range m.Layers {
		if l.MediaType != delta.MediaType {
			continue
		}
		f, err := s.c.store.TempFile()
		if err != nil {
			return err
		}
		found.Files = append(found.Files, f)
		in := s.fetch(ctx, l, func(int64) {})
		_, err = io.Copy(f, in)
		in.stop()
		if err != nil {
			return err
		}
	}
	return use(found)
}

// A deltaStream reads a delta forwards, passing over what is not wanted.
type deltaStream struct {
	p   *pulling
	l   *layer
	ctx context.Context // of the one call that this is made for

	f   *fetch
	at  int64 // in the blob
	err error // of the fetch
}

// headerAhead is how much of a delta is asked for before it is known whether its
// bases are here.
const headerAhead = 64 << 10

// passed is how many bytes are rather read than asked for anew, about what a
// slow line brings while it asks.
const passed = 64 << 10

func (s *deltaStream) Read(b []byte) (int, error) {
	if s.at == headerAhead {
		s.stop() // that was the header's
	}
	if s.f == nil {
		from, total := s.at, s.l.delta.Size
		n := total - from
		if from == 0 {
			n = min(n, headerAhead)
		}
		s.f = s.p.s.fetchPart(s.ctx, s.l.delta.descriptor, from, n, func(got int64) {
			if s.l.due() {
				s.l.progress(Progress{ID: short(s.l.Digest), Layer: true, Status: "Downloading", Current: from + got, Total: total})
			}
		})
	}
	n, err := s.f.Read(b)
	s.at += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

func (s *deltaStream) stop() {
	if s.f != nil {
		s.f.stop()
		s.f = nil
	}
}

// section lets use read a part of the delta that lies ahead.
func (s *deltaStream) section(p delta.Section, use func(io.Reader) error) error {
	if p.Offset-s.at > passed {
		s.stop()
		s.at = p.Offset
	}
	if _, err := io.CopyN(io.Discard, s, p.Offset-s.at); err != nil {
		return s.explain(err)
	}
	part := io.LimitReader(s, p.Length)
	if err := use(part); err != nil {
		return s.explain(err)
	}
	_, err := io.Copy(io.Discard, part)
	return s.explain(err)
}

// explain prefers the reason of a line that broke to what that made fail.
func (s *deltaStream) explain(err error) error {
	if err != nil && s.err != nil {
		return s.err
	}
	return err
}
