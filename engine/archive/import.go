package archive

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// ImportOptions describe the image that Import makes.
type ImportOptions struct {
	Config   dockerspec.DockerOCIImageConfig // what --change asked for, see build.Change
	Message  string
	Platform oci.Platform // the host's if zero
	Created  time.Time
}

// Import makes an image of one layer from a root file system as a tar, plain
// or compressed. It gets no name.
func Import(ctx context.Context, s *store.Store, r io.Reader, o ImportOptions) (oci.ImageID, error) {
	release, err := s.Lease("")
	if err != nil {
		return "", err
	}
	defer release()
	plain, err := Decompress(r)
	if err != nil {
		return "", fmt.Errorf("import: %w", err)
	}
	defer plain.Close()
	b := bufio.NewReaderSize(plain, 64<<10)
	if head, err := b.Peek(512); err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("import: %w", err)
	} else if !IsTar(head) {
		return "", errdef.Invalid.Errorf("import: this is not a tar, or compressed in a way that is not supported (gzip, zstd, bzip2 and xz are)")
	}
	l, err := s.AddLayer(ctx, "", b)
	if err != nil {
		return "", fmt.Errorf("import: %w", err)
	}
	config, err := json.Marshal(importConfig(l, o))
	if err != nil {
		return "", err
	}
	return s.PutImage(ctx, config, "")
}

func importConfig(l store.Layer, o ImportOptions) dockerspec.DockerOCIImage {
	if o.Platform == (oci.Platform{}) {
		o.Platform = oci.Host()
	}
	created := o.Created.UTC()
	img := dockerspec.DockerOCIImage{Config: o.Config}
	img.Created = &created
	img.OS, img.Architecture, img.Variant = o.Platform.OS, o.Platform.Architecture, o.Platform.Variant
	img.RootFS = v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.Digest(l.DiffID)}}
	img.History = []v1.History{{Created: &created, Comment: o.Message}}
	return img
}
