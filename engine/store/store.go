// Package store keeps layers and images on disk. See the type's methods for
// the contract; the package comment proper comes with the implementation.
package store

import (
	"context"
	"io"
	"os"
	"time"

	"go.etcd.io/bbolt"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"github.com/minke-os/minke/internal/overlay"
	"github.com/minke-os/minke/oci"
)

// A Layer is one immutable layer.
type Layer struct {
	DiffID  oci.DiffID
	ChainID oci.ChainID
	Parent  oci.ChainID // "" for a bottom layer
	Size    int64       // bytes of its files' content
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

// Options choose how layers are kept.
type Options struct {
	// Links forces hard links instead of metadata inodes, which Open
	// otherwise chooses by probing the kernel and the file system.
	Links bool
}

// A Removed says what Remove did, as DELETE /images reports it.
type Removed struct {
	Untagged string
	Deleted  string
}

// A Change is one difference between a container and its image.
type Change struct {
	Path string
	Kind ChangeKind
}

type ChangeKind int // as in Docker's GET /containers/{id}/changes

const (
	Modified ChangeKind = iota
	Added
	Deleted
)

type store interface {
	Close() error

	// AddLayer unpacks an uncompressed tar on top of parent. When it returns,
	// the layer is complete and durable.
	AddLayer(ctx context.Context, parent oci.ChainID, tar io.Reader) (Layer, error)
	Layer(id oci.ChainID) (Layer, error)
	// LayerTar writes exactly the bytes that AddLayer read.
	LayerTar(ctx context.Context, id oci.ChainID, w io.Writer) error
	// Mount describes the read-only view of a stack of layers; set Upper and
	// Work for a container.
	Mount(top oci.ChainID) (overlay.Mount, error)
	// Commit makes a layer of what a container changed. The container must
	// not be running processes that write, else files may be torn.
	Commit(ctx context.Context, parent oci.ChainID, upper string, m overlay.Mount) (Layer, error)
	// Changes lists what a container changed, sorted by path.
	Changes(upper string, m overlay.Mount) ([]Change, error)
	// WriteTar writes everything below root as a tar (docker export, cp).
	WriteTar(ctx context.Context, root *os.Root, w io.Writer) error

	// PutImage records an image; all its layers must be present.
	PutImage(ctx context.Context, config []byte, parent oci.ImageID) (oci.ImageID, error)
	Image(id oci.ImageID) (Image, error)
	// Resolve finds an image by name, name@digest, full ID or unique ID prefix.
	// The reference is set if it was found by name.
	Resolve(name string) (oci.ImageID, oci.Reference, error)
	Images() ([]Image, error)
	Tag(id oci.ImageID, ref oci.Reference) error
	// Remove takes a name or ID with Docker's rules: a name is untagged, and
	// the image goes with its last name; an ID needs force if several names
	// point to it. inUse tells of a container that uses an image ("" if none).
	Remove(name string, force bool, inUse func(oci.ImageID) (container string, running bool)) ([]Removed, error)
	// Lease keeps an image's or layer's content from garbage collection
	// until release.
	Lease(chain oci.ChainID) (release func(), err error)
	// GC removes layers and files that no image and no lease needs.
	GC(ctx context.Context) (bytes int64, err error)
	// Usage is the disk taken by layers, each counted once.
	Usage() (int64, error)
}

// Store is the layer and image store of one data root.
type Store struct{ store }

// Open opens the store below root (files/, layers/, staging/) with its records
// in db, removing what a crash left in staging/.
func Open(root string, db *bbolt.DB, o Options) (*Store, error) { panic("being written") }
