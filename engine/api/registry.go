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

	"github.com/minke-os/minke/engine"
	"github.com/minke-os/minke/engine/registry"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// imagePull answers POST /images/create?fromImage=.
func (s *Server) imagePull(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	o := engine.PullOptions{Credentials: credentialsOf(r)}
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
