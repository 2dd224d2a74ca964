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
	p := &pushing{ref: ref, o: o, img: img, diffs: diffIDs(img.Config), blobs: map[oci.DiffID]known{}}
	release, err := c.store.Lease(oci.ChainOf(p.diffs))
	if err != nil {
		return Pushed{}, err
	}
	defer release()
	if p.s, err = c.open(ctx, c.origin(ctx, ref.Domain), ref.Path, "pull,push", o.Credentials); err != nil {
		return Pushed{}, err
	}
	defer p.s.close()
	done, err := p.run(ctx)
	return done, mayPush(ref, err)
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
	s     *session
	ref   oci.Reference
	o     PushOptions
	img   store.Image
	diffs []oci.DiffID
	blobs map[oci.DiffID]known // what the layers are in the registry
}

// run sends layers, then the configuration, then the manifest, for a registry
// wants to have what a document names.
func (p *pushing) run(ctx context.Context) (Pushed, error) {
	if err := p.layers(ctx); err != nil {
		return Pushed{}, err
	}
	config := descriptor{MediaType: dockerConfig, Size: int64(len(p.img.Raw)), Digest: oci.Digest(p.img.ID)}
	if err := p.s.putBlob(ctx, config.Digest, p.img.Raw); err != nil {
		return Pushed{}, err
	}
	raw, mediaType, err := p.manifest(config)
	if err != nil {
		return Pushed{}, err
	}
	resp, err := p.s.do(ctx, request{
		method: http.MethodPut, path: "manifests/" + p.ref.Tag, body: raw,
		header: http.Header{"Content-Type": {mediaType}}, want: []int{http.StatusCreated, http.StatusOK},
	})
	if err != nil {
		return Pushed{}, err
	}
	resp.Body.Close()
	done := Pushed{Tag: p.ref.Tag, Digest: oci.FromBytes(raw), Size: len(raw)}
	byDigest := p.ref
	byDigest.Tag, byDigest.Digest = "", done.Digest
	return done, errors.Join(p.s.c.store.Tag(p.img.ID, byDigest), p.s.c.blobs.learn(p.blobs, nil))
}

// manifest describes the image in Docker's form, which every registry takes,
// or in OCI's if it has a layer that Docker's has no name for.
func (p *pushing) manifest(config descriptor) (raw []byte, mediaType string, err error) {
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
	raw, err = json.MarshalIndent(m, "", "   ")
	return raw, m.MediaType, err
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
	g.SetLimit(parallel)
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
		l := &outgoing{Layer: layer, known: p.s.c.blobs.of(d), progress: p.o.Progress}
		for _, k := range l.known {
			if from, ok := p.neighbour(k); ok {
				p.s.auth.allow(scope(from, "pull"))
			}
		}
		l.say("Preparing")
		all = append(all, l)
	}
	for i := parallel; i < len(all); i++ {
		all[i].say("Waiting")
	}
	return all, nil
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
		if !passes || ctx.Err() != nil || try == maxTries {
			return k, err
		}
		if err := p.s.c.pause(ctx, try, err); err != nil {
			return k, err
		}
	}
}
