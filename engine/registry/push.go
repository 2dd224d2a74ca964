package registry

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/order"
	"github.com/minke-os/minke/oci"
)

// PushOptions say how to push.
type PushOptions struct {
	Credentials Credentials
	Progress    func(Progress) // called from several goroutines; may be nil
}

// A Pushed is what a registry has now.
type Pushed struct {
	Tag    string
	Digest oci.Digest
	Size   int // of the manifest
}

// Push brings the image of the store that ref names, by a tag, to the registry
// that ref names.
func (c *Client) Push(ctx context.Context, ref oci.Reference, o PushOptions) (Pushed, error) {
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	id, _, err := c.store.Resolve(ref.String())
	if err != nil {
		return Pushed{}, err
	}
	img, err := c.store.Image(id)
	if err != nil {
		return Pushed{}, err
	}
	sess, err := c.open(ctx, c.origin(ctx, ref.Domain), ref.Path, "pull,push", o.Credentials)
	if err != nil {
		return Pushed{}, err
	}
	defer sess.close()
	done, err := push(ctx, sess, ref, o, img)
	return done, mayPush(ref, err)
}

// push sends the index that the image came in, if all that it lists is here,
// or else the image alone.
func push(ctx context.Context, s *session, ref oci.Reference, o PushOptions, img store.Image) (Pushed, error) {
	p, err := newPushing(s, ref, o, img)
	if err != nil {
		return Pushed{}, err
	}
	defer p.release()
	if index := p.wholeIndex(); index != nil {
		done, err := p.pushIndex(ctx, index)
		if err != nil || done.Digest != "" {
			return done, err
		}
	}
	m, err := p.run(ctx)
	if err != nil {
		return Pushed{}, err
	}
	return p.name(ctx, m)
}

// mayPush gives a refusal its kind, in Docker's words.
func mayPush(ref oci.Reference, err error) error {
	r, ok := errors.AsType[*refusal](err)
	switch {
	case !ok:
		return err
	case r.code == "DENIED" || r.status == http.StatusForbidden:
		return errdef.Forbidden.Wrap(err)
	case r.status == http.StatusUnauthorized:
		return errdef.Unauthorized.Wrap(err)
	}
	return errdef.Unavailable.Errorf("push %s: %w", ref.Familiar(), err)
}

// A pushing is one image on its way.
type pushing struct {
	s         *session
	ref       oci.Reference
	o         PushOptions
	img       store.Image
	diffs     []oci.DiffID
	manifests []*manifest          // by which the image came, or went before
	blobs     map[oci.DiffID]known // what the layers are in the registry
	release   func()
}

func newPushing(s *session, ref oci.Reference, o PushOptions, img store.Image) (*pushing, error) {
	p := &pushing{s: s, ref: ref, o: o, img: img, diffs: diffIDs(img.Config), blobs: map[oci.DiffID]known{}}
	kept, err := s.c.store.Manifests(img.ID)
	if err != nil {
		return nil, err
	}
	for _, k := range kept {
		if m, err := parseManifest(k.Raw, k.MediaType); err == nil {
			p.manifests = append(p.manifests, m)
		}
	}
	// The one that this repository has, or had, comes first.
	here := func(m *manifest) bool {
		return slices.ContainsFunc(img.Digests, func(r oci.Reference) bool { return r.Repository() == ref.Repository() && r.Digest == m.digest })
	}
	order.By(p.manifests, func(a, b *manifest) int {
		switch {
		case here(a) && !here(b):
			return -1
		case here(b) && !here(a):
			return 1
		}
		return 0
	})
	p.release, err = s.c.store.Lease(oci.ChainOf(p.diffs))
	return p, err
}

// run sends layers, then the configuration, for a registry wants to have what
// a document names, and says which document that is.
func (p *pushing) run(ctx context.Context) (*manifest, error) {
	if err := p.layers(ctx); err != nil {
		return nil, err
	}
	config := descriptor{MediaType: dockerConfig, Size: int64(len(p.img.Raw)), Digest: oci.Digest(p.img.ID)}
	if err := p.s.putBlob(ctx, config.Digest, p.img.Raw); err != nil {
		return nil, err
	}
	if m := p.original(); m != nil {
		return m, nil
	}
	return p.manifest(config)
}

// original is the manifest by which the image came, if its layers have the
// same bytes there.
func (p *pushing) original() *manifest {
	for _, m := range p.manifests {
		if !m.isIndex() && m.Config.Digest == oci.Digest(p.img.ID) && slices.EqualFunc(m.Layers, p.diffs, func(l descriptor, d oci.DiffID) bool {
			return l.Digest == p.blobs[d].Digest
		}) {
			return m
		}
	}
	return nil
}

// put stores a document in the registry, under a tag or its digest.
func (p *pushing) put(ctx context.Context, name string, m *manifest) error {
	resp, err := p.s.do(ctx, request{
		method: http.MethodPut, path: "manifests/" + name, body: m.raw,
		header: http.Header{"Content-Type": {m.MediaType}}, want: []int{http.StatusCreated, http.StatusOK},
	})
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// name gives the registry's tag to what was sent, and notes it here.
func (p *pushing) name(ctx context.Context, m *manifest) (Pushed, error) {
	if err := p.put(ctx, p.ref.Tag, m); err != nil {
		return Pushed{}, err
	}
	st := p.s.c.store
	byDigest := p.ref
	byDigest.Tag, byDigest.Digest = "", m.digest
	return Pushed{Tag: p.ref.Tag, Digest: m.digest, Size: len(m.raw)}, errors.Join(
		st.PutManifest(p.img.ID, store.Manifest{Digest: m.digest, MediaType: m.MediaType, Raw: m.raw}),
		st.Tag(p.img.ID, byDigest), p.s.c.blobs.learn(p.blobs, nil))
}

// wholeIndex is the index that the image came in, if every image in it is here.
func (p *pushing) wholeIndex() *manifest {
	for _, m := range p.manifests {
		missing := func(d descriptor) bool {
			_, err := p.s.c.store.ImageOf(d.Digest)
			return err != nil
		}
		if m.isIndex() && len(m.Manifests) > 0 && !slices.ContainsFunc(m.Manifests, missing) {
			return m
		}
	}
	return nil
}

// pushIndex sends an index and all that it lists. It sends nothing under the
// tag, and gives no digest, if an image cannot go as the index has it: its
// compressed layers are nowhere in this registry.
func (p *pushing) pushIndex(ctx context.Context, index *manifest) (Pushed, error) {
	for _, d := range index.Manifests {
		same, err := p.member(ctx, d.Digest)
		if err != nil || !same {
			return Pushed{}, err
		}
	}
	return p.name(ctx, index)
}

// member sends one image of an index and reports whether its manifest is still
// the one that the index names.
func (p *pushing) member(ctx context.Context, want oci.Digest) (bool, error) {
	st := p.s.c.store
	id, err := st.ImageOf(want)
	if err != nil {
		return false, err
	}
	img, err := st.Image(id)
	if err != nil {
		return false, err
	}
	q, err := newPushing(p.s, p.ref, p.o, img)
	if err != nil {
		return false, err
	}
	defer q.release()
	m, err := q.run(ctx)
	if err != nil || m.digest != want {
		return false, err
	}
	return true, q.put(ctx, string(want), m)
}

// manifest describes the image in Docker's form, which every registry takes,
// or in OCI's if it has a layer that Docker's has no name for.
func (p *pushing) manifest(config descriptor) (*manifest, error) {
	var m struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}
	m.SchemaVersion, m.MediaType, m.Layers = 2, dockerManifest, []descriptor{}
	for _, d := range p.diffs {
		b := p.blobs[d]
		m.Layers = append(m.Layers, descriptor{MediaType: b.MediaType, Size: b.Size, Digest: b.Digest})
	}
	inDocker := func(d descriptor) bool { return slices.Contains([]string{dockerLayer, ociLayer}, d.MediaType) }
	layerType := dockerLayer
	if !allOf(m.Layers, inDocker) {
		m.MediaType, config.MediaType, layerType = ociManifest, ociConfig, ociLayer
	}
	for i, d := range m.Layers {
		if inDocker(d) {
			m.Layers[i].MediaType = layerType
		}
	}
	m.Config = config
	// Written as Docker writes it: then an image that Docker pushed has the
	// same digest when we push it back.
	raw, err := json.MarshalIndent(m, "", "   ")
	if err != nil {
		return nil, err
	}
	return parseManifest(raw, m.MediaType)
}

func allOf(all []descriptor, ok func(descriptor) bool) bool {
	return !slices.ContainsFunc(all, func(d descriptor) bool { return !ok(d) })
}

// An outgoing is a layer to be pushed.
type outgoing struct {
	store.Layer
	known    []known // blobs that it is, or was, somewhere
	progress func(Progress)
}

func (l *outgoing) say(status string) { l.tell(status, 0) }

func (l *outgoing) tell(status string, current int64) {
	var total int64
	if current > 0 {
		total = l.TarSize
	}
	l.progress(Progress{ID: short(oci.Digest(l.DiffID)), Layer: true, Status: status, Current: current, Total: total})
}

// layers sees to it that the registry has all layers.
func (p *pushing) layers(ctx context.Context) error {
	all, err := p.outgoing()
	if err != nil {
		return err
	}
	results := make([]known, len(all))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(p.s.c.o.Uploads)
	for i, l := range all {
		g.Go(func() (err error) {
			results[i], err = p.layer(ctx, l)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, l := range all {
		p.blobs[l.DiffID] = results[i]
	}
	return nil
}

// outgoing lists the layers, each once, and asks in advance for the right to
// take blobs from where they may be.
func (p *pushing) outgoing() ([]*outgoing, error) {
	var all []*outgoing
	seen := map[oci.DiffID]bool{}
	for i, d := range slices.Backward(p.diffs) {
		if seen[d] {
			continue
		}
		seen[d] = true
		layer, err := p.s.c.store.Layer(oci.ChainOf(p.diffs[:i+1]))
		if err != nil {
			return nil, err
		}
		l := &outgoing{Layer: layer, known: p.known(i), progress: p.o.Progress}
		for _, k := range l.known {
			if from, ok := p.neighbour(k); ok {
				p.s.auth.allow(scope(from, "pull"))
			}
		}
		l.say("Preparing")
		all = append(all, l)
	}
	for i := p.s.c.o.Uploads; i < len(all); i++ {
		all[i].say("Waiting")
	}
	return all, nil
}

// known are the blobs that layer i is or was somewhere, those of the manifests
// that came with the image first.
func (p *pushing) known(i int) []known {
	all := p.s.c.blobs.of(p.diffs[i])
	for _, m := range slices.Backward(p.manifests) {
		if len(m.Layers) != len(p.diffs) || len(m.Layers[i].URLs) > 0 {
			continue
		}
		d := m.Layers[i]
		if at := slices.IndexFunc(all, func(k known) bool { return k.Digest == d.Digest }); at >= 0 {
			k := all[at]
			all = append([]known{k}, slices.Delete(all, at, at+1)...)
		} else {
			all = append([]known{{Digest: d.Digest, Size: d.Size, MediaType: d.MediaType}}, all...)
		}
	}
	return all
}

// neighbour is the path of another repository of the same registry that a
// blob may be taken from.
func (p *pushing) neighbour(k known) (string, bool) {
	path, ok := strings.CutPrefix(k.Repository, p.ref.Domain+"/")
	return path, ok && path != p.ref.Path
}

// layer makes the registry have a layer: it has it, or takes it from another
// repository, or else gets it.
func (p *pushing) layer(ctx context.Context, l *outgoing) (known, error) {
	for _, k := range l.known {
		k.Repository = p.ref.Repository()
		has, err := p.s.has(ctx, k.Digest)
		if err != nil {
			return known{}, err
		}
		if has {
			l.say("Layer already exists")
			return k, nil
		}
	}
	for _, k := range l.known {
		from, ok := p.neighbour(k)
		if !ok {
			continue
		}
		k.Repository = p.ref.Repository()
		mounted, err := p.s.mount(ctx, k.Digest, from)
		if err != nil {
			return known{}, err
		}
		if mounted {
			l.say("Mounted from " + from)
			return k, nil
		}
	}
	k, err := p.upload(ctx, l)
	if err == nil {
		l.say("Pushed")
	}
	return k, err
}

// upload sends a layer, and again from the start if it broke off: the bytes
// are made as they go and are not kept.
func (p *pushing) upload(ctx context.Context, l *outgoing) (known, error) {
	for try := 1; ; try++ {
		k, err := p.s.send(ctx, l)
		k.Repository = p.ref.Repository()
		r, refused := errors.AsType[*refusal](err)
		passes := errdef.Is(err, errdef.Unavailable) || refused && (r.passes() || r.status == http.StatusUnauthorized)
		if !passes || ctx.Err() != nil || try == p.s.c.o.Tries {
			return k, err
		}
		if err := p.s.c.pause(ctx, try, err); err != nil {
			return k, err
		}
	}
}
