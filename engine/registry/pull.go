package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// PullOptions say how to pull. The zero value pulls anonymously for this host.
type PullOptions struct {
	// Platform is what the image must be for. If it is not given, Host is
	// what an index is searched for, and a single image may be for any.
	Platform    oci.Platform
	Host        oci.Platform // oci.Host() if empty
	Credentials Credentials
	NoDeltas    bool           // fetch layers whole
	Background  bool           // one layer at a time: nobody waits for it
	Progress    func(Progress) // called from several goroutines; may be nil
}

// Pull makes an image of a registry one of the store, under the name that ref
// gives it and under its digest.
func (c *Client) Pull(ctx context.Context, ref oci.Reference, o PullOptions) (oci.ImageID, error) {
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	if o.Host == (oci.Platform{}) {
		o.Host = oci.Host()
	}
	release, err := c.store.Lease("")
	if err != nil {
		return "", err
	}
	defer release()
	p := &pulling{ref: ref, o: o}
	defer p.release()
	if err := c.anywhere(ctx, ref, o.Credentials, p.from); err != nil {
		return "", err
	}
	return p.id, nil
}

// anywhere does what f does at a mirror or, if that does not help, where ref
// comes from.
func (c *Client) anywhere(ctx context.Context, ref oci.Reference, creds Credentials, f func(context.Context, *session) error) (err error) {
	for _, ep := range c.endpoints(ctx, ref.Domain) {
		err = c.at(ctx, ep, ref, creds, f)
		if err == nil || ctx.Err() != nil || !ep.mirror {
			return err
		}
		c.o.Logger.Warn("registry mirror does not help", "mirror", ep.host, "image", ref.Familiar(), "err", err)
	}
	return err
}

func (c *Client) at(ctx context.Context, ep endpoint, ref oci.Reference, creds Credentials, f func(context.Context, *session) error) error {
	s, err := c.open(ctx, ep, ref.Path, "pull", creds)
	if err != nil {
		return err
	}
	defer s.close()
	return asked(ref, f(ctx, s))
}

func tagOrDigest(ref oci.Reference) string {
	if ref.Digest != "" {
		return string(ref.Digest)
	}
	return ref.Tag
}

// A pulling is one image on its way.
type pulling struct {
	s   *session
	ref oci.Reference
	o   PullOptions

	digest   oci.Digest // of what ref names: an index or a manifest
	index    *manifest  // what ref names, if that is an index
	manifest *manifest  // nil if the image was here under that digest
	id       oci.ImageID
	diffs    []oci.DiffID
	leases   []func()
	fetched  bool // the image was not here
}

func (p *pulling) release() {
	for _, f := range p.leases {
		f()
	}
}

// lease keeps a stack that is here already until the end of the pull.
func (p *pulling) lease(chain oci.ChainID) error {
	release, err := p.s.c.store.Lease(chain)
	if err == nil {
		p.leases = append(p.leases, release)
	}
	return err
}

// from pulls from one endpoint.
func (p *pulling) from(ctx context.Context, s *session) error {
	p.s = s
	here, err := p.here(ctx)
	if err == nil && !here {
		err = p.resolve(ctx)
	}
	if err != nil {
		return err
	}
	p.o.Progress(Progress{ID: tagOrDigest(p.ref), Status: "Pulling from " + p.ref.Path})
	if !here {
		if err := p.image(ctx); err != nil {
			return err
		}
	}
	return p.finish()
}

// here asks only for the digest and reports whether the image is known under
// it. Registries that count pulls do not count that.
func (p *pulling) here(ctx context.Context) (bool, error) {
	if p.o.Platform != (oci.Platform{}) {
		return false, nil // an index has several images under one digest
	}
	byDigest := p.ref
	if byDigest.Digest == "" {
		var err error
		if byDigest.Digest, err = p.s.digestOf(ctx, p.ref.Tag); err != nil || byDigest.Digest == "" {
			return false, err
		}
	}
	id, _, err := p.s.c.store.Resolve(byDigest.String())
	if err != nil {
		return false, nil
	}
	img, err := p.s.c.store.Image(id)
	if err != nil || !slices.Contains(p.o.Host.Runs(), platformOf(img.Config)) {
		return false, nil
	}
	p.id, p.digest = id, byDigest.Digest
	return true, nil
}

func platformOf(config dockerspec.DockerOCIImage) oci.Platform {
	return oci.Platform{OS: config.OS, Architecture: config.Architecture, Variant: config.Variant}.Canonical()
}

// resolve finds the manifest.
func (p *pulling) resolve(ctx context.Context) error {
	m, err := p.s.manifest(ctx, tagOrDigest(p.ref))
	if err != nil {
		return err
	}
	p.digest = m.digest
	if m.isIndex() {
		p.index = m
	}
	want := p.o.Platform
	if want == (oci.Platform{}) {
		want = p.o.Host
	}
	if p.manifest, err = p.s.image(ctx, m, want); err != nil {
		return err
	}
	p.id = oci.ImageID(p.manifest.Config.Digest)
	return nil
}

// image gets what is missing of the image and records it.
func (p *pulling) image(ctx context.Context) error {
	if img, err := p.s.c.store.Image(p.id); err == nil {
		p.diffs = diffIDs(img.Config)
		return p.checkPlatform(img.Config)
	}
	raw, err := p.s.blob(ctx, p.manifest.Config, maxConfig)
	if err != nil {
		return fmt.Errorf("configuration of %s: %w", p.ref.Familiar(), err)
	}
	var config dockerspec.DockerOCIImage
	if err := json.Unmarshal(raw, &config); err != nil {
		return errdef.Invalid.Errorf("configuration of %s: %w", p.ref.Familiar(), err)
	}
	if err := p.checkPlatform(config); err != nil {
		return err
	}
	p.diffs = diffIDs(config)
	if len(p.diffs) != len(p.manifest.Layers) {
		return errdef.Invalid.Errorf("%s: the configuration has %d layers, the manifest %d", p.ref.Familiar(), len(p.diffs), len(p.manifest.Layers))
	}
	if err := p.layers(ctx); err != nil {
		return err
	}
	p.fetched = true
	_, err = p.s.c.store.PutImage(ctx, raw, "")
	return err
}

func diffIDs(config dockerspec.DockerOCIImage) []oci.DiffID {
	out := make([]oci.DiffID, len(config.RootFS.DiffIDs))
	for i, d := range config.RootFS.DiffIDs {
		out[i] = oci.DiffID(d)
	}
	return out
}

// checkPlatform compares an image that no index described with what the user
// asked for.
func (p *pulling) checkPlatform(config dockerspec.DockerOCIImage) error {
	want := p.o.Platform
	if want == (oci.Platform{}) || p.digest != p.manifest.digest {
		return nil
	}
	if slices.Contains(want.Runs(), platformOf(config)) {
		return nil
	}
	return errdef.NotFound.Errorf("image with reference %s was found but does not match the specified platform: wanted %s, actual: %s", p.ref.Familiar(), want, platformOf(config))
}

// finish names the image and tells the end.
func (p *pulling) finish() error {
	st := p.s.c.store
	had, _, err := st.Resolve(p.ref.String())
	if err != nil {
		had = ""
	}
	if err := p.keepManifests(); err != nil {
		return err
	}
	byDigest := p.ref
	byDigest.Tag, byDigest.Digest = "", p.digest
	if err := st.Tag(p.id, byDigest); err != nil {
		return err
	}
	if p.ref.Digest == "" {
		if err := st.Tag(p.id, p.ref); err != nil {
			return err
		}
	}
	if err := p.learn(); err != nil {
		return err
	}
	if p.fetched {
		if err := st.Settle(); err != nil {
			return err
		}
	}
	status := "Image is up to date for "
	if p.fetched || had != p.id {
		status = "Downloaded newer image for "
	}
	p.o.Progress(Progress{Status: "Digest: " + string(p.digest)})
	p.o.Progress(Progress{Status: "Status: " + status + p.ref.Familiar()})
	return nil
}

// keepManifests keeps the documents as they came, for a push.
func (p *pulling) keepManifests() error {
	for _, m := range []*manifest{p.manifest, p.index} {
		if m == nil {
			continue
		}
		if err := p.s.c.store.PutManifest(p.id, store.Manifest{Digest: m.digest, MediaType: m.MediaType, Raw: m.raw}); err != nil {
			return err
		}
	}
	return nil
}

// learn remembers which blobs the layers are.
func (p *pulling) learn() error {
	if p.manifest == nil {
		return nil // the image was here
	}
	blobs := map[oci.DiffID]known{}
	for i, l := range p.manifest.Layers {
		if i < len(p.diffs) && len(l.URLs) == 0 {
			blobs[p.diffs[i]] = known{l.Digest, l.Size, l.MediaType, p.ref.Repository()}
		}
	}
	images, err := p.s.c.store.Images()
	if err != nil {
		return err
	}
	live := map[oci.DiffID]bool{}
	for _, img := range images {
		for _, d := range diffIDs(img.Config) {
			live[d] = true
		}
	}
	return p.s.c.blobs.learn(blobs, live)
}

// short is the twelve digits by which people know a layer.
func short(d oci.Digest) string { return d.Hex()[:min(12, len(d.Hex()))] }
