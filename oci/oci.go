// Package oci has the identifiers of the container world as Go types.
//
//	Digest   algorithm and hex of some bytes, as they are stored or sent
//	DiffID   digest of one layer's uncompressed tar
//	ChainID  digest of a layer and everything below it
//	ImageID  digest of an image's configuration
//
// Each is a type of its own so that a digest of compressed bytes passed as a
// DiffID does not compile. The package does no input or output.
//
// Formats: OCI image specification v1.1, descriptor.md and config.md.
package oci

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"
)

// A Digest names bytes by their SHA-256, in the form "sha256:<64 lower-case hex>".
type Digest string

// A DiffID is the digest of one layer's uncompressed tar.
type DiffID Digest

// A ChainID names a layer together with all layers below it. The chain ID of
// a bottom layer equals its DiffID. The zero value is the empty root.
type ChainID Digest

// An ImageID is the digest of an image's configuration.
type ImageID Digest

// Prefix is the only algorithm we use.
const Prefix = "sha256:"

// ParseDigest checks that s is a SHA-256 digest.
func ParseDigest(s string) (Digest, error) {
	h, ok := strings.CutPrefix(s, Prefix)
	if !ok || !IsHex(h) {
		return "", fmt.Errorf("invalid digest %q: want sha256: and 64 lower-case hex digits", s)
	}
	return Digest(s), nil
}

// IsHex reports whether s is the 64 lower-case hex digits of a SHA-256.
func IsHex(s string) bool {
	if len(s) != 64 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// FromBytes is the digest of b.
func FromBytes(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest(Prefix + hex.EncodeToString(sum[:]))
}

// FromHash is the digest of what was written to h, a SHA-256.
func FromHash(h hash.Hash) Digest {
	return Digest(Prefix + hex.EncodeToString(h.Sum(nil)))
}

// Hex is the digest without its algorithm.
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), Prefix) }

// Hex is the ID without its algorithm, as layers/ names its directories.
func (c ChainID) Hex() string { return Digest(c).Hex() }

// Hex is the ID without its algorithm.
func (i ImageID) Hex() string { return Digest(i).Hex() }

// Short is the twelve hex digits that people see.
func (i ImageID) Short() string { return i.Hex()[:min(12, len(i.Hex()))] }

// Chain is the chain ID of a layer diff on top of parent.
func Chain(parent ChainID, diff DiffID) ChainID {
	if parent == "" {
		return ChainID(diff)
	}
	return ChainID(FromBytes([]byte(string(parent) + " " + string(diff))))
}

// ChainOf is the chain ID of a stack of layers, bottom first.
func ChainOf(diffs []DiffID) ChainID {
	var c ChainID
	for _, d := range diffs {
		c = Chain(c, d)
	}
	return c
}
