package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/minke-os/minke/engine/delta"
	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

const emptyConfig = "application/vnd.oci.empty.v1+json"

// PushDelta brings a delta to the registry, beside the image that ref names
// there, which must be its target.
func (c *Client) PushDelta(ctx context.Context, ref oci.Reference, d *store.ImageDelta, o PushOptions) (Pushed, error) {
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	s, err := c.open(ctx, c.origin(ctx, ref.Domain), ref.Path, "pull,push", o.Credentials)
	if err != nil {
		return Pushed{}, err
	}
	defer s.close()
	done, err := s.pushDelta(ctx, ref, d, o)
	return done, mayPush(ref, err)
}

func (s *session) pushDelta(ctx context.Context, ref oci.Reference, d *store.ImageDelta, o PushOptions) (Pushed, error) {
	subject, err := s.subject(ctx, ref, d.Target)
	if err != nil {
		return Pushed{}, err
	}
	for _, l := range d.Layers {
		tell := func(status string, current int64) {
			o.Progress(Progress{ID: short(l.Digest), Layer: true, Status: status, Current: current, Total: l.Size})
		}
		if err := s.putFile(ctx, l, tell); err != nil {
			return Pushed{}, err
		}
	}
	if err := s.putBlob(ctx, oci.FromBytes([]byte("{}")), []byte("{}")); err != nil {
		return Pushed{}, err
	}
	m, err := deltaManifest(d, subject)
	if err != nil {
		return Pushed{}, err
	}
	lists, err := s.putReferrer(ctx, m)
	if err == nil && !lists {
		err = s.addFallback(ctx, subject.Digest, m)
	}
	return Pushed{Digest: m.digest, Size: len(m.raw)}, err
}

// subject is the manifest of the image in the registry.
func (s *session) subject(ctx context.Context, ref oci.Reference, img store.Image) (descriptor, error) {
	m, err := s.manifest(ctx, tagOrDigest(ref))
	if err != nil {
		return descriptor{}, err
	}
	if m, err = s.image(ctx, m, platformOf(img.Config)); err != nil {
		return descriptor{}, err
	}
	if m.Config.Digest != oci.Digest(img.ID) {
		return descriptor{}, errdef.Conflict.Errorf("%s is another image in the registry than here: push it first", ref.Familiar())
	}
	return descriptor{MediaType: m.MediaType, Size: int64(len(m.raw)), Digest: m.digest}, nil
}

// putFile uploads a delta, and again from the start if that broke off.
func (s *session) putFile(ctx context.Context, l store.LayerDelta, tell func(status string, current int64)) error {
	if has, err := s.has(ctx, l.Digest); has || err != nil {
		tell("Layer already exists", 0)
		return err
	}
	for try := 1; ; try++ {
		err := s.sendFile(ctx, l, tell)
		if err == nil {
			tell("Pushed", 0)
			return nil
		}
		if !errdef.Is(err, errdef.Unavailable) || ctx.Err() != nil || try == s.c.o.Tries {
			return err
		}
		if err := s.c.pause(ctx, try, err); err != nil {
			return err
		}
	}
}

func (s *session) sendFile(ctx context.Context, l store.LayerDelta, tell func(status string, current int64)) error {
	to, err := s.begin(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	dead := time.AfterFunc(s.c.o.Stall, func() {
		cancel(errdef.Unavailable.Errorf("registry %s took nothing for %s; check the network", s.ep.host, s.c.o.Stall))
	})
	defer dead.Stop()
	body := &told{r: io.NewSectionReader(l.File, 0, l.Size), tell: tell}
	resp, err := s.do(ctx, request{
		method: http.MethodPatch, url: to, stream: taken{body, dead, s.c.o.Stall},
		header: http.Header{"Content-Type": {"application/octet-stream"}}, want: []int{http.StatusAccepted, http.StatusNoContent},
	})
	if err != nil {
		return err
	}
	resp.Body.Close()
	if to, err = location(resp); err != nil {
		return err
	}
	return s.end(ctx, to, l.Digest, []byte{})
}

// told tells how much of a file has been read.
type told struct {
	r    io.Reader
	n    int64
	tell func(status string, current int64)
	last time.Time
}

func (t *told) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.n += int64(n)
	if now := time.Now(); now.Sub(t.last) >= often {
		t.last = now
		t.tell("Pushing", t.n)
	}
	return n, err
}

// deltaManifest describes the artifact.
func deltaManifest(d *store.ImageDelta, subject descriptor) (*manifest, error) {
	empty := []byte("{}")
	m := struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		ArtifactType  string            `json:"artifactType"`
		Config        descriptor        `json:"config"`
		Layers        []descriptor      `json:"layers"`
		Subject       descriptor        `json:"subject"`
		Annotations   map[string]string `json:"annotations"`
	}{
		SchemaVersion: 2, MediaType: ociManifest, ArtifactType: delta.ArtifactType, Subject: subject,
		Config:      descriptor{MediaType: emptyConfig, Size: int64(len(empty)), Digest: oci.FromBytes(empty)},
		Layers:      []descriptor{},
		Annotations: map[string]string{delta.BaseImage: string(d.Base.ID)},
	}
	for _, l := range d.Layers {
		notes := map[string]string{delta.TargetLayer: string(l.Target)}
		if l.Base != "" {
			notes[delta.BaseLayer] = string(l.Base)
		}
		m.Layers = append(m.Layers, descriptor{MediaType: delta.MediaType, Size: l.Size, Digest: l.Digest, Annotations: notes})
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return parseManifest(raw, ociManifest)
}

// putReferrer stores a manifest with a subject, and reports whether the
// registry lists it there by itself.
func (s *session) putReferrer(ctx context.Context, m *manifest) (listed bool, err error) {
	resp, err := s.do(ctx, request{
		method: http.MethodPut, path: "manifests/" + string(m.digest), body: m.raw,
		header: http.Header{"Content-Type": {m.MediaType}}, want: []int{http.StatusCreated, http.StatusOK},
	})
	if err != nil {
		return false, err
	}
	return resp.Header.Get("OCI-Subject") != "", resp.Body.Close()
}

// addFallback lists a manifest under the tag that stands for its subject. Two
// who do so at once may lose one of the entries; nothing else can be done with
// such a registry.
func (s *session) addFallback(ctx context.Context, subject oci.Digest, m *manifest) error {
	index := struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Manifests     []descriptor `json:"manifests"`
	}{SchemaVersion: 2, MediaType: ociIndex, Manifests: []descriptor{}}
	old, err := s.fallback(ctx, subject)
	if err != nil {
		return err
	}
	if old != nil {
		index.Manifests = slices.DeleteFunc(old.Manifests, func(d descriptor) bool { return d.Digest == m.digest })
	}
	index.Manifests = append(index.Manifests, descriptor{
		MediaType: ociManifest, Size: int64(len(m.raw)), Digest: m.digest, ArtifactType: delta.ArtifactType, Annotations: m.Annotations,
	})
	raw, err := json.Marshal(index)
	if err != nil {
		return err
	}
	resp, err := s.do(ctx, request{
		method: http.MethodPut, path: "manifests/" + fallbackTag(subject), body: raw,
		header: http.Header{"Content-Type": {ociIndex}}, want: []int{http.StatusCreated, http.StatusOK},
	})
	if err != nil {
		return fmt.Errorf("list the delta beside the image: %w", err)
	}
	return resp.Body.Close()
}
