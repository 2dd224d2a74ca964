package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/minke-os/minke/internal/errdef"
)

// A session is one repository of one endpoint, and who asks for it.
type session struct {
	c    *Client
	ep   endpoint
	path string  // of the repository
	base url.URL // of the endpoint
	http *http.Client
	auth *authorizer
}

// open begins a session. Actions are what tokens shall allow, "pull" or
// "pull,push"; a session without a path is one with the registry as such.
func (c *Client) open(ctx context.Context, ep endpoint, path, actions string, creds Credentials) (*session, error) {
	client, err := c.httpClient(ep)
	if err != nil {
		return nil, err
	}
	if ep.mirror {
		creds = Credentials{}
	}
	s := &session{c: c, ep: ep, path: path, http: client, base: url.URL{Scheme: ep.scheme, Host: ep.host}}
	s.auth = &authorizer{http: client, creds: creds, agent: c.o.UserAgent, lax: ep.insecure || ep.scheme == "http"}
	if path != "" {
		s.auth.scopes = []string{scope(path, actions)}
	}
	if ep.scheme == "" {
		if s.base.Scheme, err = s.scheme(ctx); err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

func scope(path, actions string) string { return "repository:" + path + ":" + actions }

func (s *session) close() { s.http.CloseIdleConnections() }

// scheme finds out what an insecure registry speaks. TLS goes first: who
// intercepts connections should not be the one to choose.
func (s *session) scheme(ctx context.Context) (string, error) {
	var first error
	for _, scheme := range []string{"https", "http"} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+s.ep.host+"/v2/", nil)
		if err != nil {
			return "", errdef.Invalid.Wrap(err)
		}
		resp, err := s.http.Do(req)
		if err == nil {
			resp.Body.Close()
			return scheme, nil
		}
		if first == nil || scheme == "http" && !refusedDial(first) {
			first = err
		}
	}
	return "", unreachable(s.ep.host, first)
}

func refusedDial(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// A request is one question to a registry.
type request struct {
	method string
	path   string   // below /v2/<repository>/
	url    *url.URL // in place of path: a Location that the registry gave
	query  url.Values
	header http.Header
	body   []byte    // may be sent several times
	stream io.Reader // in place of body: can be sent only once
	want   []int     // statuses that are no refusal
}

const (
	// maxTries is how often a request is repeated, and a blob's download taken
	// up again without having moved, unless Options say otherwise.
	maxTries = 5
	// maxPause is the longest wait before a repetition. A server that asks for
	// more is not waited for: the caller tries again some other day.
	maxPause = time.Minute
)

// do asks until it has one of the wanted answers, repeating what may pass.
// It does not repeat what cannot be reached: that is for the caller, who knows
// how much is lost. The caller closes the answer's body.
func (s *session) do(ctx context.Context, r request) (*http.Response, error) {
	for try := 1; ; try++ {
		resp, err := s.authorized(ctx, r)
		if err != nil {
			return nil, err
		}
		if slices.Contains(r.want, resp.StatusCode) {
			return resp, nil
		}
		why := refused(resp)
		resp.Body.Close()
		if !why.passes() || try == s.c.o.Tries || r.stream != nil {
			return nil, why
		}
		if err := s.c.pause(ctx, try, why); err != nil {
			return nil, err
		}
	}
}

// pause waits before the next try: as long as the server asks, or else twice
// as long as before, give or take a quarter so that a fleet does not come back
// all at once. It returns why if that would take too long.
func (c *Client) pause(ctx context.Context, try int, why error) error {
	d := c.o.Pause << (try - 1)
	d += time.Duration((rand.Float64() - 0.5) / 2 * float64(d))
	if r, ok := errors.AsType[*refusal](why); ok && r.after > 0 {
		if r.after > maxPause {
			return why
		}
		d = r.after
	}
	d = min(d, maxPause)
	c.o.Logger.Info("registry: will try again", "in", d.Round(time.Millisecond), "try", try, "err", why)
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// authorized asks once, and once more with a new token if the one it had, or
// none, was refused.
func (s *session) authorized(ctx context.Context, r request) (*http.Response, error) {
	header := s.auth.current()
	resp, err := s.once(ctx, r, header)
	if err != nil || resp.StatusCode != http.StatusUnauthorized || r.stream != nil {
		return resp, err
	}
	renewed, err := s.auth.answer(ctx, header, resp)
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	if !renewed {
		return resp, nil
	}
	resp.Body.Close()
	return s.once(ctx, r, s.auth.current())
}

func (s *session) once(ctx context.Context, r request, authorization string) (*http.Response, error) {
	body := r.stream
	if r.body != nil {
		body = bytes.NewReader(r.body)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, s.target(r), body)
	if err != nil {
		return nil, errdef.Invalid.Wrap(err)
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	if s.c.o.UserAgent != "" {
		req.Header.Set("User-Agent", s.c.o.UserAgent)
	}
	if authorization != "" && req.URL.Host == s.base.Host && req.URL.Scheme == s.base.Scheme {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := s.http.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		return nil, unreachable(req.URL.Host, err)
	}
	return resp, nil
}

func (s *session) target(r request) string {
	u := s.base
	if r.url != nil {
		u = *r.url
	} else {
		u.Path = "/v2/" + strings.TrimPrefix(s.path+"/"+r.path, "/")
	}
	if len(r.query) > 0 {
		q := u.Query()
		for k, v := range r.query {
			q[k] = v
		}
		u.RawQuery = q.Encode()
	}
	return u.String()
}

// read takes the whole of a small answer.
func read(resp *http.Response, limit int64) ([]byte, error) {
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, unreachable(resp.Request.URL.Host, err)
	}
	if int64(len(b)) > limit {
		return nil, errdef.Invalid.Errorf("%s sends more than %d bytes, the most that is allowed here", resp.Request.URL.Host, limit)
	}
	return b, nil
}
