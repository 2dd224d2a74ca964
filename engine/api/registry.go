package api

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/jsonstream"
	registrytypes "github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/minke-os/minke/engine"
	"github.com/minke-os/minke/engine/registry"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// priorityHeader is ours: "low" has a pull give way to everything else.
const priorityHeader = "X-Minke-Priority"

// imagePull answers POST /images/create?fromImage=.
func (s *Server) imagePull(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	o := engine.PullOptions{Credentials: credentialsOf(r), Background: r.Header.Get(priorityHeader) == "low"}
	if p := q.Get("platform"); p != "" {
		var err error
		if o.Platform, err = oci.ParsePlatform(p); err != nil {
			return errdef.Invalid.Wrap(err)
		}
	}
	out := &messages{w: w}
	o.Progress = out.progress
	return out.fail(s.engine.ImagePull(r.Context(), q.Get("fromImage"), q.Get("tag"), o))
}

// imagePush answers POST /images/{name}/push.
func (s *Server) imagePush(w http.ResponseWriter, r *http.Request, name string) error {
	out := &messages{w: w}
	err := s.engine.ImagePush(r.Context(), name, r.URL.Query().Get("tag"), engine.PushOptions{
		Credentials: credentialsOf(r), Progress: out.progress, Pushed: out.pushed,
	})
	return out.fail(err)
}

// pushed tells the end of a push, to people and to programs.
func (m *messages) pushed(p registry.Pushed) {
	m.status(fmt.Sprintf("%s: digest: %s size: %d", p.Tag, p.Digest, p.Size))
	aux, _ := json.Marshal(struct {
		Tag, Digest string
		Size        int
	}{p.Tag, string(p.Digest), p.Size})
	m.send(message{Message: jsonstream.Message{Aux: (*json.RawMessage)(&aux)}})
}

// distribution answers GET /distribution/{name}/json.
func (s *Server) distribution(w http.ResponseWriter, r *http.Request) error {
	name, ok := strings.CutSuffix(r.PathValue("name"), "/json")
	if !ok {
		return notFound(w, r)
	}
	d, err := s.engine.DistributionInspect(r.Context(), name, credentialsOf(r))
	if err != nil {
		return err
	}
	out := registrytypes.DistributionInspect{
		Descriptor: ocispec.Descriptor{MediaType: d.MediaType, Digest: digest.Digest(d.Digest), Size: d.Size},
		Platforms:  []ocispec.Platform{},
	}
	for _, p := range d.Platforms {
		out.Platforms = append(out.Platforms, ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant})
	}
	return writeJSON(w, http.StatusOK, out)
}

// auth answers POST /auth, which is docker login.
func (s *Server) auth(w http.ResponseWriter, r *http.Request) error {
	var req registrytypes.AuthConfig
	if err := readJSON(r, &req, false); err != nil {
		return err
	}
	token, err := s.engine.RegistryLogin(r.Context(), req.ServerAddress, credentials(req))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, registrytypes.AuthResponse{Status: "Login Succeeded", IdentityToken: token})
}

// registryConfig reads X-Registry-Config: for a build, credentials for all
// registries that the client has any for.
func registryConfig(r *http.Request) engine.RegistryAuths {
	var all map[string]registrytypes.AuthConfig
	dec := base64.NewDecoder(base64.URLEncoding, strings.NewReader(r.Header.Get("X-Registry-Config")))
	if json.NewDecoder(dec).Decode(&all) != nil {
		return nil
	}
	out := engine.RegistryAuths{}
	for server, a := range all {
		out[registry.ServerDomain(server)] = credentials(a)
	}
	return out
}

// credentialsOf reads X-Registry-Auth. As in Docker, what cannot be read is
// as if it were not there: clients send all sorts of things for "nothing".
func credentialsOf(r *http.Request) registry.Credentials {
	var a registrytypes.AuthConfig
	dec := base64.NewDecoder(base64.URLEncoding, strings.NewReader(r.Header.Get(registrytypes.AuthHeader)))
	if json.NewDecoder(dec).Decode(&a) != nil {
		return registry.Credentials{}
	}
	return credentials(a)
}

func credentials(a registrytypes.AuthConfig) registry.Credentials {
	c := registry.Credentials{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
	if plain, err := base64.StdEncoding.DecodeString(a.Auth); err == nil && c.Username == "" {
		c.Username, c.Password, _ = strings.Cut(string(plain), ":")
	}
	return c
}

// progress sends a line of a pull or push.
func (m *messages) progress(p registry.Progress) {
	msg := message{Message: jsonstream.Message{ID: p.ID, Status: p.Status}}
	if p.Layer {
		msg.Progress = &jsonstream.Progress{Current: p.Current, Total: p.Total}
		msg.ProgressText = progressBar(p.Current, p.Total)
	}
	m.send(msg) // a client that left cancels the request
}

// progressBar is what old clients print, for a terminal of 80 columns or more.
func progressBar(current, total int64) string {
	const width = 50
	switch {
	case current <= 0 && total <= 0:
		return ""
	case total <= 0:
		return fmt.Sprintf("%8v", units.HumanSize(float64(current)))
	}
	bar := strings.Repeat("=", int(min(current, total)*width/total)) + ">"
	return fmt.Sprintf("[%-*s] %8v/%v", width+1, bar, units.HumanSize(float64(current)), units.HumanSize(float64(total)))
}
