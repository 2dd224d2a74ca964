package registry

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// A Description is what a registry has under a name.
type Description struct {
	MediaType string
	Digest    oci.Digest
	Size      int64
	Platforms []oci.Platform
}

// Inspect describes an image without pulling it.
func (c *Client) Inspect(ctx context.Context, ref oci.Reference, creds Credentials) (d Description, err error) {
	err = c.anywhere(ctx, ref, creds, func(ctx context.Context, s *session) error {
		d, err = s.describe(ctx, ref)
		return err
	})
	return d, err
}

func (s *session) describe(ctx context.Context, ref oci.Reference) (Description, error) {
	m, err := s.manifest(ctx, tagOrDigest(ref))
	if err != nil {
		return Description{}, err
	}
	d := Description{MediaType: m.MediaType, Digest: m.digest, Size: int64(len(m.raw)), Platforms: []oci.Platform{}}
	for _, e := range m.Manifests {
		if e.Platform != nil {
			d.Platforms = append(d.Platforms, *e.Platform)
		}
	}
	if m.isIndex() {
		return d, nil
	}
	raw, err := s.blob(ctx, m.Config, maxConfig)
	if err != nil {
		return d, err
	}
	var config dockerspec.DockerOCIImage
	if err := json.Unmarshal(raw, &config); err != nil {
		return d, errdef.Invalid.Errorf("configuration of %s: %w", ref.Familiar(), err)
	}
	d.Platforms = append(d.Platforms, oci.Platform{OS: config.OS, Architecture: config.Architecture, Variant: config.Variant})
	return d, nil
}

// Tags lists the tags of a repository.
func (c *Client) Tags(ctx context.Context, ref oci.Reference, creds Credentials) (tags []string, err error) {
	err = c.anywhere(ctx, ref, creds, func(ctx context.Context, s *session) error {
		tags, err = s.tags(ctx)
		return err
	})
	return tags, err
}

func (s *session) tags(ctx context.Context) ([]string, error) {
	var all []string
	r := request{method: http.MethodGet, path: "tags/list", want: []int{http.StatusOK}}
	for {
		resp, err := s.do(ctx, r)
		if err != nil {
			return nil, err
		}
		body, err := read(resp, maxManifest)
		if err != nil {
			return nil, err
		}
		var page struct{ Tags []string }
		if err := json.Unmarshal(body, &page); err != nil {
			return nil, errdef.Unavailable.Errorf("tags of %s: %w", s.path, err)
		}
		all = append(all, page.Tags...)
		// The rest is behind a link: </v2/x/tags/list?last=y>; rel="next".
		next, _, ok := strings.Cut(strings.TrimPrefix(resp.Header.Get("Link"), "<"), ">")
		if !ok || len(page.Tags) == 0 {
			return all, nil
		}
		if r.url, err = resp.Request.URL.Parse(next); err != nil {
			return nil, errdef.Unavailable.Errorf("tags of %s: %w", s.path, err)
		}
	}
}

// Login tries credentials at a registry, named by its host or a URL; "" is
// Docker's. It returns a token that can stand for the password, if the
// registry gives such.
func (c *Client) Login(ctx context.Context, server string, creds Credentials) (identity string, err error) {
	s, err := c.open(ctx, c.origin(ctx, ServerDomain(server)), "", "", creds)
	if err != nil {
		return "", err
	}
	defer s.close()
	ping := request{method: http.MethodGet}
	resp, err := s.once(ctx, ping, "")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	header := ""
	for _, ch := range parseChallenges(resp.Header.Values("WWW-Authenticate")) {
		switch {
		case resp.StatusCode != http.StatusUnauthorized || header != "":
		case ch.scheme == "bearer":
			var token string
			if token, identity, err = s.auth.token(ctx, ch.params, true); err != nil {
				return "", rejected(s.ep.host, err)
			}
			header = "Bearer " + token
		case ch.scheme == "basic":
			header = "Basic " + basic(creds)
		}
	}
	if header != "" {
		if resp, err = s.once(ctx, ping, header); err != nil {
			return "", err
		}
		defer resp.Body.Close()
	}
	if resp.StatusCode != http.StatusOK {
		return "", rejected(s.ep.host, refused(resp))
	}
	return identity, nil
}

func rejected(host string, err error) error {
	if r, ok := err.(*refusal); ok && (r.status == http.StatusUnauthorized || r.status == http.StatusForbidden) {
		return errdef.Unauthorized.Errorf("login to %s: unauthorized: incorrect username or password (%w)", host, err)
	}
	return errdef.Unavailable.Errorf("login to %s: %w", host, err)
}

// ServerDomain is the domain of references to a registry which a client's
// configuration names by host or URL.
func ServerDomain(server string) string {
	_, rest, ok := strings.Cut(server, "://")
	if !ok {
		rest = server
	}
	host, _, _ := strings.Cut(rest, "/")
	switch host {
	case "", "index.docker.io", hubHost:
		return hubDomain
	}
	return host
}
