package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"mime"
	"net/http"
	"strings"

	"github.com/minke-os/minke/engine/delta"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// The media types that we know. Registries and tools mix the two families.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
	ociIndex       = "application/vnd.oci.image.index.v1+json"
	ociConfig      = "application/vnd.oci.image.config.v1+json"
	ociLayer       = "application/vnd.oci.image.layer.v1.tar+gzip"
	ociZstdLayer   = "application/vnd.oci.image.layer.v1.tar+zstd"
)

const (
	maxManifest = 4 << 20 // as the distribution protocol advises
	maxConfig   = 8 << 20
)

// A descriptor names a blob or another manifest.
type descriptor struct {
	MediaType string        `json:"mediaType"`
	Size      int64         `json:"size"`
	Digest    oci.Digest    `json:"digest"`
	URLs      []string      `json:"urls,omitempty"`
	Platform  *oci.Platform `json:"platform,omitempty"`

	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

// A manifest is an image's, or an index of manifests: Manifests is not nil.
type manifest struct {
	digest oci.Digest // of raw
	raw    []byte

	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
	Manifests     []descriptor `json:"manifests"`

	ArtifactType string            `json:"artifactType"`
	Annotations  map[string]string `json:"annotations"`
}

func (m *manifest) isIndex() bool { return m.Manifests != nil }

// parseManifest reads a manifest or an index. The content type is what counts
// when the document does not say what it is.
func parseManifest(raw []byte, contentType string) (*manifest, error) {
	m := &manifest{digest: oci.FromBytes(raw), raw: raw}
	if err := json.Unmarshal(raw, m); err != nil {
		return nil, errdef.Invalid.Errorf("manifest: %w", err)
	}
	if m.MediaType == "" {
		m.MediaType, _, _ = mime.ParseMediaType(contentType)
	}
	if m.SchemaVersion == 1 {
		return nil, errdef.Unsupported.Errorf("the manifest is of schema 1, which was given up in 2017: push the image again with a current tool")
	}
	switch m.MediaType {
	case dockerManifest, ociManifest, dockerList, ociIndex:
	default:
		return nil, errdef.Unsupported.Errorf("media type %q is not that of an image", m.MediaType)
	}
	// A document that is both could be one image to us and another to the
	// scanner that let it pass.
	index := m.MediaType == dockerList || m.MediaType == ociIndex
	if index == (m.Manifests == nil) || index && (m.Layers != nil || m.Config.Digest != "") {
		return nil, errdef.Invalid.Errorf("manifest: what it has is not what its media type %s says", m.MediaType)
	}
	return m, m.check()
}

func (m *manifest) check() error {
	all := append(append([]descriptor{}, m.Layers...), m.Manifests...)
	if !m.isIndex() {
		all = append(all, m.Config)
		switch m.Config.MediaType {
		case dockerConfig, ociConfig, "", "application/octet-stream":
		default:
			if m.ArtifactType == delta.ArtifactType {
				break
			}
			return errdef.Unsupported.Errorf("media type %q is not that of an image's configuration: this is something else that is kept in a registry", m.Config.MediaType)
		}
	}
	for _, d := range all {
		if _, err := oci.ParseDigest(string(d.Digest)); err != nil {
			return errdef.Invalid.Errorf("manifest: %w", err)
		}
		if d.Size < 0 {
			return errdef.Invalid.Errorf("manifest: %s has the size %d", d.Digest, d.Size)
		}
	}
	return nil
}

// manifest fetches a manifest by tag or digest.
func (s *session) manifest(ctx context.Context, reference string) (*manifest, error) {
	resp, err := s.do(ctx, request{
		method: http.MethodGet, path: "manifests/" + reference, want: []int{http.StatusOK},
		header: http.Header{"Accept": accepted},
	})
	if err != nil {
		return nil, err
	}
	raw, err := read(resp, maxManifest)
	if err != nil {
		return nil, err
	}
	want := reference
	if !strings.HasPrefix(reference, oci.Prefix) {
		want = resp.Header.Get("Docker-Content-Digest")
	}
	if got := oci.FromBytes(raw); strings.HasPrefix(want, oci.Prefix) && string(got) != want {
		return nil, errdef.Unavailable.Errorf("manifest %s from %s is damaged: its digest is %s, not %s", reference, s.ep.host, got, want)
	}
	return parseManifest(raw, resp.Header.Get("Content-Type"))
}

// digestOf is the digest of what a tag names, "" if the registry does not say.
func (s *session) digestOf(ctx context.Context, tag string) (oci.Digest, error) {
	resp, err := s.do(ctx, request{
		method: http.MethodHead, path: "manifests/" + tag, header: http.Header{"Accept": accepted},
		want: []int{http.StatusOK, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusUnauthorized, http.StatusForbidden},
	})
	if err != nil {
		return "", err
	}
	resp.Body.Close()
	d, err := oci.ParseDigest(resp.Header.Get("Docker-Content-Digest"))
	if err != nil || resp.StatusCode != http.StatusOK {
		return "", nil // the answer to GET has a body that tells why
	}
	return d, nil
}

// accepted are the documents that we understand.
var accepted = []string{ociIndex, dockerList, ociManifest, dockerManifest}

// image finds the manifest of the image for a platform: m itself, or one of
// those it lists.
func (s *session) image(ctx context.Context, m *manifest, p oci.Platform) (*manifest, error) {
	for depth := 0; m.isIndex(); depth++ {
		d, ok := choose(m.Manifests, p)
		if !ok {
			return nil, errdef.NotFound.Errorf("no matching manifest for %s in the manifest list entries; it has %s", p, cmp.Or(listPlatforms(m.Manifests), "none"))
		}
		if depth == 3 {
			return nil, errdef.Invalid.Errorf("manifest: indexes in indexes in indexes")
		}
		var err error
		if m, err = s.manifest(ctx, string(d.Digest)); err != nil {
			return nil, err
		}
	}
	return m, nil
}
