// Package store keeps image layers and images on disk, each distinct file
// content once.
//
// A layer is an immutable directory tree named by its chain ID. Its regular
// files are metadata inodes: empty files with an owner, a mode, times and
// attributes, whose bytes the kernel's overlay takes from files/, where
// content lies under a name made from its SHA-256, whatever its name in any
// layer. The layer's toc has what is needed to write its tar again, byte by
// byte. Kernels before Linux 6.5 get hard links into files/ instead of
// metadata inodes. docs/store.md describes the format.
//
//	files/.wh.<x>/<name>        content, never modified
//	layers/<chain hex>/diff     directories, links, special files, metadata inodes
//	layers/<chain hex>/toc      how to write the tar again, compressed
//	staging/                    work in progress; empty after Open
//	empty/                      two layers with nothing in them, always
//	loose/                      names of objects that an update has brought, see Loose
//
// The records (layers, images, names) are in one bbolt database that the
// caller opens and shares; ours is the bucket "store". A layer is synced to
// disk, then renamed into place, then recorded, so every recorded layer is
// complete. A crash leaves things that no record names: Open removes those of
// staging/ and layers/, GC those of files/. A record that cannot be read, or
// whose layer is gone, is moved to the bucket "aside" and reported; the store
// opens all the same.
//
// All methods may be called at once from many goroutines. What is being added
// or is leased is safe from GC. Leases are in memory: after Open, take those
// for containers before the first GC. One process at a time may use a root,
// which the database's lock ensures.
//
// The package does not fetch, compress or run anything, and mounts nothing
// but detached views, for reading.
package store

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"github.com/minke-os/minke/internal/durable"
	"github.com/minke-os/minke/internal/overlay"
	"github.com/minke-os/minke/oci"
)

// A Layer is one immutable layer.
type Layer struct {
	DiffID  oci.DiffID
	ChainID oci.ChainID
	Parent  oci.ChainID // "" for a bottom layer
	Size    int64       // bytes of its files' content
	TarSize int64       // bytes that LayerTar writes
}

// Empty reports whether there is nothing in the layer: its tar has the end
// mark alone.
func (l Layer) Empty() bool {
	return l.DiffID == "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
}

// An Image is a configuration whose layers are all present.
type Image struct {
	ID      oci.ImageID
	Config  dockerspec.DockerOCIImage
	Raw     []byte // the configuration's exact bytes, of which ID is the digest
	Tags    []oci.Reference
	Digests []oci.Reference // repository@manifest digest
	Size    int64           // sum over its layers
	Tagged  time.Time       // when a name was last given
	Parent  oci.ImageID     // the image the builder started from, if built here
}

// Options choose how layers are kept. The zero value is right for a device.
type Options struct {
	// Links forces hard links instead of metadata inodes, which Open
	// otherwise chooses by probing the kernel and the file system.
	Links bool
	// MaxLayer is the most bytes a layer may unpack to; 0 is four times what
	// the disk has.
	MaxLayer int64
	// Logger hears of records that were set aside; nil discards.
	Logger *slog.Logger
}

// Store is the layer and image store of one data root.
type Store struct {
	root     string
	db       *bbolt.DB
	links    bool
	maxLayer int64
	log      *slog.Logger
	dir      *os.File // root, to sync its file system by
	ordered  bool     // that file system keeps the order of changes, see inOrder

	mu     sync.Mutex // guards the rest; may be held over a transaction
	leases map[*lease]struct{}
	added  map[oci.ChainID]uint64 // when, in the order of clock, a layer was added since Open
	clock  uint64
	pins   map[string]int      // objects that an unrecorded layer needs
	claims map[string]struct{} // those of them in files/ that only the layer that brought them has found
	kept   map[string]struct{} // objects pinned since the running GC began; nil when none runs

	pinSets  map[*pinSet]struct{} // more that are pinned
	keptSets []*pinSet            // those of them that the running GC has met

	looseMu sync.Mutex // guards what is in loose/
}

// Open opens the store below root with its records in db, removing what a
// crash left in staging/ and layers/.
func Open(root string, db *bbolt.DB, o Options) (*Store, error) {
	s := &Store{
		root: root, db: db, links: o.Links, maxLayer: o.MaxLayer, log: o.Logger,
		leases: map[*lease]struct{}{}, added: map[oci.ChainID]uint64{}, pins: map[string]int{}, claims: map[string]struct{}{},
		pinSets: map[*pinSet]struct{}{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := s.prepare(); err != nil {
		return nil, fmt.Errorf("open store %s: %w", root, err)
	}
	if err := s.check(); err != nil {
		s.dir.Close()
		return nil, fmt.Errorf("open store %s: %w", root, err)
	}
	return s, nil
}

// Close releases what Open took; the database stays open. No other method may
// be running.
func (s *Store) Close() error { return s.dir.Close() }

// prepare makes the directories, clears staging and chooses the kind of layers.
func (s *Store) prepare() error {
	if err := os.RemoveAll(s.path("staging")); err != nil {
		return err
	}
	if err := os.MkdirAll(s.root, 0o711); err != nil {
		return err
	}
	// Nobody but root may come by: layers have set-ID programs, which are for
	// containers and not for users of the host. Containers do not pass here,
	// the overlay looks names up from the layers on.
	for _, d := range []string{"files", "layers", "staging", "empty", "loose"} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return err
		}
	}
	for _, d := range s.empty() { // what an image without layers shows as its root
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	for i := range len(alphabet) {
		if err := os.MkdirAll(s.objectDir(alphabet[i:i+1]), 0o700); err != nil {
			return err
		}
	}
	if err := durable.SyncDir(s.path("files")); err != nil {
		return err
	}
	if !s.links {
		if err := overlay.ProbeData(s.path("staging")); err != nil {
			s.log.Info("layers are kept as hard links", "why", err)
			s.links = true
		}
	}
	var err error
	if s.dir, err = os.Open(s.root); err != nil {
		return err
	}
	s.ordered = inOrder(s.dir)
	return nil
}

// empty are directories that fill a stack up to the two that the kernel wants.
func (s *Store) empty() []string { return []string{s.path("empty", "1"), s.path("empty", "2")} }

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}

func (s *Store) layerPath(id oci.ChainID, elem ...string) string {
	return s.path(append([]string{"layers", id.Hex()}, elem...)...)
}
