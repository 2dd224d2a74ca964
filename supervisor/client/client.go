// Package client speaks the Docker Engine API as far as the supervisor needs it.
//
// Calls, options and results are named as in github.com/moby/moby/client, whose
// subset they are, and carry the types of github.com/moby/moby/api. That client
// itself is not linked into minked: it brings OpenTelemetry along, half a
// megabyte for nothing that a device collects.
//
// Errors of the engine have a kind by their status, as containerd's errdefs
// tells them; those of a connection say which engine does not answer. A Client
// keeps nothing but idle connections, and is safe for concurrent use. What
// streams ends with its context.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/common"
)

// The versions of the API that this client can speak. MaxVersion is that of the
// module of the types; before MinVersion some of what it sends had other names.
const (
	MinVersion = "1.40"
	MaxVersion = "1.56"
)

// Options of a Client. Only Host is needed.
type Options struct {
	Host    string // unix:///run/engine.sock or tcp://address:port
	Dial    func(ctx context.Context, network, address string) (net.Conn, error)
	Headers map[string]string // of all requests
}

// A Client is one engine's.
type Client struct {
	o    Options
	base url.URL
	http *http.Client

	mu      sync.Mutex
	version string // "" until the engine was asked
}

// New makes a client. It does not connect yet.
func New(o Options) (*Client, error) {
	scheme, address, ok := strings.Cut(o.Host, "://")
	if !ok || address == "" || scheme != "unix" && scheme != "tcp" && scheme != "http" {
		return nil, fmt.Errorf("%q is no address of an engine; give unix:///path/to/socket or tcp://host:port", o.Host)
	}
	// Half a minute is longer than the supervisor's bursts of requests.
	t := &http.Transport{MaxIdleConns: 6, IdleConnTimeout: 30 * time.Second, DialContext: o.Dial}
	c := &Client{o: o, http: &http.Client{Transport: t, CheckRedirect: noRedirect}}
	c.base = url.URL{Scheme: "http", Host: "engine"} // a socket has no name
	if scheme == "unix" {
		if t.DialContext == nil {
			t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", address)
			}
		}
		return c, nil
	}
	t.Proxy = http.ProxyFromEnvironment
	host, prefix, _ := strings.Cut(address, "/")
	c.base.Host, c.base.Path = host, "/"+prefix
	return c, nil
}

// noRedirect keeps a request what it is. An engine redirects none, but Go's mux
// does where a path has an empty part, and from a POST makes a GET.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// Close gives up idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// negotiated gives the version that both sides speak.
func (c *Client) negotiated(ctx context.Context) (string, error) {
	c.mu.Lock()
	version := c.version
	c.mu.Unlock()
	if version != "" {
		return version, nil
	}
	resp, err := c.send(ctx, call{method: http.MethodGet, path: []string{"_ping"}}, "")
	if err != nil {
		return "", err
	}
	resp.Body.Close()
	version = resp.Header.Get("Api-Version")
	switch {
	case version == "" || older(MaxVersion, version):
		version = MaxVersion
	case older(version, MinVersion):
		return "", fmt.Errorf("the engine at %s speaks version %s of the API, the supervisor needs %s or newer: update the engine", c.o.Host, version, MinVersion)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version = version
	return version, nil
}

// older compares versions of the API, such as 1.9 and 1.40.
func older(a, b string) bool {
	major := func(v string) (int, int) {
		x, y, _ := strings.Cut(v, ".")
		n, _ := strconv.Atoi(x)
		m, _ := strconv.Atoi(y)
		return n, m
	}
	a1, a2 := major(a)
	b1, b2 := major(b)
	return a1 < b1 || a1 == b1 && a2 < b2
}

// A call is one request.
type call struct {
	method  string
	path    []string // below the version; none of it may be empty
	query   url.Values
	headers http.Header
	body    any // as JSON; nil sends none
}

// do sends a call and decodes the answer into out, unless that is nil.
func (c *Client) do(ctx context.Context, r call, out any) error {
	resp, err := c.stream(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out != nil {
		err = json.NewDecoder(resp.Body).Decode(out)
	}
	io.CopyN(io.Discard, resp.Body, 512) // what is read to its end can be used again
	return err
}

// stream sends a call whose answer the caller reads and closes.
func (c *Client) stream(ctx context.Context, r call) (*http.Response, error) {
	version, err := c.negotiated(ctx)
	if err != nil {
		return nil, err
	}
	return c.send(ctx, r, "v"+version)
}

func (c *Client) send(ctx context.Context, r call, version string) (*http.Response, error) {
	for _, part := range r.path {
		if strings.Trim(part, "/ ") == "" {
			return nil, fmt.Errorf("%s %s: a name is empty: %w", r.method, strings.Join(r.path, "/"), cerrdefs.ErrInvalidArgument)
		}
	}
	u := c.base
	u.Path = path.Join("/", u.Path, version, path.Join(r.path...))
	u.RawQuery = r.query.Encode()
	var body io.Reader
	if r.body != nil {
		text, err := json.Marshal(r.body)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), body)
	if err != nil {
		return nil, err
	}
	maps.Copy(req.Header, r.headers)
	for k, v := range c.o.Headers {
		req.Header.Set(k, v)
	}
	req.Header.Set("User-Agent", "minke-supervisor")
	if r.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	switch {
	case err == nil:
		return resp, c.refused(resp)
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	var at *url.Error
	if errors.As(err, &at) {
		err = at.Err // without the URL, which for a socket says nothing
	}
	return nil, fmt.Errorf("cannot connect to the engine at %s; is it running? %w", c.o.Host, err)
}

// refused is the error that an answer stands for, and closes such.
func (c *Client) refused(resp *http.Response) error {
	if resp.StatusCode >= 200 && resp.StatusCode < 300 || resp.StatusCode == http.StatusNotModified { // is started already
		return nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	var said common.ErrorResponse
	switch {
	case err != nil:
		text = []byte(err.Error())
	case json.Unmarshal(text, &said) == nil && said.Message != "":
		text = []byte(said.Message)
	case len(bytes.TrimSpace(text)) == 0:
		text = fmt.Appendf(nil, "%s %s: %s", resp.Request.Method, resp.Request.URL.Path, resp.Status)
	}
	return &refusal{"Error response from daemon: " + strings.TrimSpace(string(text)), resp.StatusCode}
}

// A refusal is an error of the engine.
type refusal struct {
	text   string
	status int
}

func (e *refusal) Error() string { return e.text }

func (e *refusal) Unwrap() error {
	switch e.status {
	case http.StatusUnauthorized:
		return cerrdefs.ErrUnauthenticated
	case http.StatusForbidden:
		return cerrdefs.ErrPermissionDenied
	case http.StatusNotFound:
		return cerrdefs.ErrNotFound
	case http.StatusConflict:
		return cerrdefs.ErrConflict
	case http.StatusTooManyRequests:
		return cerrdefs.ErrResourceExhausted
	case http.StatusNotImplemented:
		return cerrdefs.ErrNotImplemented
	case http.StatusServiceUnavailable:
		return cerrdefs.ErrUnavailable
	}
	if e.status >= 500 {
		return cerrdefs.ErrInternal
	}
	return cerrdefs.ErrInvalidArgument
}

// Filters choose what a list has: of each term at least one value fits.
type Filters map[string]map[string]bool

// Add adds values to a term, and gives f.
func (f Filters) Add(term string, values ...string) Filters {
	if f[term] == nil {
		f[term] = map[string]bool{}
	}
	for _, v := range values {
		f[term][v] = true
	}
	return f
}
