// Package archive moves images in and out of tar files: docker save, load and
// import.
//
// Save writes one tar that is both an OCI image layout and what "docker load"
// has read since 2016: oci-layout, index.json, manifest.json and repositories
// first, then blobs/sha256/. Layers are uncompressed, so their digests are
// their diff IDs, and load(save(x)) has the IDs of x.
//
// Load reads either form, also compressed. Nothing is spooled: each layer is
// unpacked into the store as it comes by, unless it is there, which its name or
// else its bytes tell. Where the tar tells too late what a layer lies upon, as
// Docker's own archives did before version 25, it is placed at the end. A load
// that fails leaves at most layers that no image has, and GC takes them.
//
// Functions may be called at once. They neither choose which images to save
// nor word progress for people.
package archive

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"

	"github.com/minke-os/minke/oci"
)

// A Progress is one step of a load.
type Progress struct {
	ID             string // twelve digits of a layer
	Current, Total int64  // bytes of it

	// Loaded, if set, is an image that is now complete, under a name or else
	// under its ID.
	Loaded  string
	ImageID oci.ImageID
}

// Decompress gives the plain bytes of a stream that may be compressed with
// gzip, zstd, bzip2 or xz. Close it when done; that does not close r.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	magic, err := b.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte("\x1f\x8b")):
		return gzip.NewReader(b)
	case bytes.HasPrefix(magic, []byte("\x28\xb5\x2f\xfd")):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(magic, []byte("BZh")):
		return io.NopCloser(bzip2.NewReader(b)), nil
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		z, err := xz.NewReader(b, maxDictionary)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(z), nil
	}
	return io.NopCloser(b), nil
}

// maxWindow is the most memory that a zstd stream may make us take: what
// "zstd --ultra -20" asks for. Image tools ask for 8 MB and less; with the
// 128 MB of -22 a device of 512 MB could not go on with its work.
const maxWindow = 32 << 20

// maxDictionary is the same for xz: what "xz -9" asks for. By itself it takes
// 8 MB.
const maxDictionary = 64 << 20

// IsTar reports whether the block is the beginning of a tar: a header whose
// checksum is right, or the zeros of an empty one.
func IsTar(block []byte) bool {
	if len(block) < 512 {
		return false
	}
	block = block[:512]
	if len(bytes.Trim(block, "\x00")) == 0 {
		return true
	}
	sum := 8 * int(' ') // the checksum field counts as spaces
	for i, b := range block {
		if i < 148 || i >= 156 {
			sum += int(b)
		}
	}
	var want int
	n, _ := fmt.Sscanf(string(bytes.Trim(block[148:156], " \x00")), "%o", &want)
	return n == 1 && sum == want
}
