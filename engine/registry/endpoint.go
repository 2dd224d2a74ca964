package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/minke-os/minke/internal/errdef"
)

// The names of Docker's own registry: in references, and where it is.
const (
	hubDomain = "docker.io"
	hubHost   = "registry-1.docker.io"
)

// An endpoint is a server that may have what a reference names.
type endpoint struct {
	host     string // host[:port] to connect to
	scheme   string // "" is https, or for an insecure registry what it answers to
	insecure bool   // its certificate is not checked, and http will do
	mirror   bool   // of docker.io; gets no credentials
}

// endpoints lists where to look for a domain's images, in order.
func (c *Client) endpoints(ctx context.Context, domain string) []endpoint {
	var out []endpoint
	if domain == hubDomain {
		out = slices.Clone(c.mirrors)
		for i := range out {
			out[i].insecure = c.insecure(ctx, out[i].host)
		}
	}
	return append(out, c.origin(ctx, domain))
}

// origin is where a domain's images come from, and go to.
func (c *Client) origin(ctx context.Context, domain string) endpoint {
	switch domain {
	case hubDomain, "index.docker.io":
		return endpoint{host: hubHost, scheme: "https"}
	}
	if c.insecure(ctx, domain) {
		return endpoint{host: domain, insecure: true}
	}
	return endpoint{host: domain, scheme: "https"}
}

// insecure reports whether a registry may do without TLS: what is on this very
// host, and what the configuration lists.
func (c *Client) insecure(ctx context.Context, hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	if host == "localhost" || c.hosts[hostport] || c.hosts[host] {
		return true
	}
	if ip, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return ip.IsLoopback() || c.inNets(ip)
	}
	if len(c.nets) == 0 {
		return false
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	return err == nil && slices.ContainsFunc(ips, c.inNets)
}

func (c *Client) inNets(ip netip.Addr) bool {
	return slices.ContainsFunc(c.nets, func(p netip.Prefix) bool { return p.Contains(ip.Unmap()) })
}

// httpClient makes the connections of one session. Each has its own, so that
// none stays open, and keeps its buffers, in a daemon that pulls once a week.
func (c *Client) httpClient(ep endpoint) (*http.Client, error) {
	conf, err := c.tlsConfig(ep)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 15 * time.Second}).DialContext,
		TLSClientConfig:       conf,
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: c.o.Stall,
		DisableCompression:    true, // blobs are counted and hashed as they are stored
		// One connection for each layer on its way. HTTP/2 would put them all
		// in one, with megabytes of buffers for each stream that waits.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
	return &http.Client{Transport: t, CheckRedirect: checkRedirect}, nil
}

// checkRedirect keeps credentials from the servers that registries send us to
// for blobs; net/http would send them to another port of the same host and to
// subdomains.
func checkRedirect(req *http.Request, via []*http.Request) error {
	from := via[0].URL
	if len(via) >= 10 {
		return errdef.Unavailable.Errorf("%s redirects in circles", from.Host)
	}
	if via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return errdef.Unavailable.Errorf("%s redirects from https to %s, which is refused", from.Host, req.URL.Scheme)
	}
	if req.URL.Host != from.Host || req.URL.Scheme != from.Scheme {
		req.Header.Del("Authorization")
	}
	return nil
}

// tlsConfig reads the certificates of a registry as Docker lays them out:
// *.crt are authorities, *.cert and *.key of one name identify us.
func (c *Client) tlsConfig(ep endpoint) (*tls.Config, error) {
	conf := &tls.Config{InsecureSkipVerify: ep.insecure}
	dir := filepath.Join(c.o.CertDir, filepath.Base(ep.host))
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return conf, nil
	}
	if err != nil {
		return nil, fmt.Errorf("certificates of %s: %w", ep.host, err)
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		switch filepath.Ext(path) {
		case ".crt":
			err = addAuthority(conf, path)
		case ".cert":
			err = addIdentity(conf, path)
		}
		if err != nil {
			return nil, fmt.Errorf("certificates of %s: %w", ep.host, err)
		}
	}
	return conf, nil
}

func addAuthority(conf *tls.Config, path string) error {
	pem, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if conf.RootCAs == nil {
		if conf.RootCAs, err = x509.SystemCertPool(); err != nil {
			conf.RootCAs = x509.NewCertPool()
		}
	}
	if !conf.RootCAs.AppendCertsFromPEM(pem) {
		return errdef.Invalid.Errorf("%s has no certificate in PEM form", path)
	}
	return nil
}

func addIdentity(conf *tls.Config, path string) error {
	cert, err := tls.LoadX509KeyPair(path, strings.TrimSuffix(path, ".cert")+".key")
	if err != nil {
		return errdef.Invalid.Errorf("client certificate %s and its key: %w", path, err)
	}
	conf.Certificates = append(conf.Certificates, cert)
	return nil
}
