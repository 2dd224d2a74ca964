// Package registry moves images between registries and the store, over the
// OCI distribution protocol, version 1.1.
//
//	Client   what all pulls and pushes share: settings, the store, memory of blobs
//	session  one repository of one registry, and who asks for it
//	blob     bytes named by their digest: a layer, compressed, or a configuration
//
// Nothing that came from a registry is believed. Manifests, configurations and
// blobs are checked against the digests by which they were asked for, layers
// also against the diff IDs in the configuration, and all of that before the
// image is recorded. Bytes go from the connection through decompression into
// the store: no compressed copy touches the disk, and memory is bounded by a
// few megabytes for each layer on its way.
//
// A pull that fails, is cancelled or crashes leaves complete layers, which the
// next attempt finds and does not fetch again unless GC took them first. A
// push leaves blobs in the registry, which it finds there again.
//
// Methods may be called at once. Two pulls of the same image both fetch it, and
// both succeed. The package remembers in the bucket "blobs" which blob a layer
// is in which repository; without that memory pushes only take longer. It keeps
// no credentials, no connections and no tokens from one call to the next.
package registry

import (
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/errdef"
)

// Options are the settings of a Client. The zero value is right for a device
// without special wishes.
type Options struct {
	Mirrors   []string // of docker.io, URLs as https://mirror.example:5000
	Insecure  []string // registries without (valid) TLS: host, host:port or CIDR
	CertDir   string   // certificates by host[:port]; /etc/docker/certs.d if empty
	UserAgent string
	Logger    *slog.Logger // hears of retries; nil discards

	// Stall is how long a connection may be silent before it counts as dead,
	// and Pause how long to wait before the first retry, which doubles with
	// each. Zero takes a minute and a second.
	Stall, Pause time.Duration

	// Downloads and Uploads are how many layers of an image are on their way at
	// once: 0, and more than that, is 3, for each takes memory.
	Downloads, Uploads int
	// Tries is how often a request is repeated; 0 is 5.
	Tries int
}

// atMost is n within the bound; 0 is the bound.
func atMost(bound, n int) int {
	if n <= 0 || n > bound {
		return bound
	}
	return n
}

// Credentials are what a user has for a registry; most are empty.
type Credentials struct {
	Username, Password string
	IdentityToken      string // in place of a password, from an earlier Login
	RegistryToken      string // a bearer token, to be sent as it is
}

// Client pulls and pushes. New makes one.
type Client struct {
	store   *store.Store
	blobs   blobMemory
	o       Options
	mirrors []endpoint
	nets    []netip.Prefix // of o.Insecure
	hosts   map[string]bool
}

// New checks the options and makes a client for a store whose database is db.
func New(s *store.Store, db *bbolt.DB, o Options) (*Client, error) {
	if o.CertDir == "" {
		o.CertDir = "/etc/docker/certs.d"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Stall == 0 {
		o.Stall = time.Minute
	}
	if o.Pause == 0 {
		o.Pause = time.Second
	}
	o.Downloads, o.Uploads = atMost(parallel, o.Downloads), atMost(parallel, o.Uploads)
	if o.Tries <= 0 {
		o.Tries = maxTries
	}
	c := &Client{store: s, blobs: blobMemory{db}, o: o, hosts: map[string]bool{}}
	for _, text := range o.Mirrors {
		m, err := parseMirror(text)
		if err != nil {
			return nil, err
		}
		c.mirrors = append(c.mirrors, m)
	}
	for _, text := range o.Insecure {
		if p, err := netip.ParsePrefix(text); err == nil {
			c.nets = append(c.nets, p)
		} else if strings.Contains(text, "/") {
			return nil, errdef.Invalid.Errorf("insecure registry %q: want host, host:port or a network as 192.168.0.0/16", text)
		} else {
			c.hosts[text] = true
		}
	}
	if err := c.blobs.prepare(); err != nil {
		return nil, fmt.Errorf("open registry client: %w", err)
	}
	return c, nil
}

func parseMirror(text string) (endpoint, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return endpoint{}, errdef.Invalid.Errorf("registry mirror %q: want a URL as https://mirror.example", text)
	}
	return endpoint{host: u.Host, scheme: u.Scheme, mirror: true}, nil
}

// A Progress is one line that a client sees, in Docker's words.
type Progress struct {
	ID             string // of a layer, or a tag; "" for what concerns the whole
	Layer          bool   // ID is a layer's
	Status         string
	Current, Total int64 // bytes; Total is 0 when there is nothing to count
}
