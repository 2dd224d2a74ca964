package store

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// Hard-linked layers, for kernels without data-only layers: an object is an
// inode with metadata and all, so there is one for each combination of
// content, owner, mode, time and attributes, and files of layers are links to
// it. An overlay over such layers must have its index off; with it on, the
// kernel takes all links of an inode for one file and a write to one shows in
// all (package overlay sees to it, a test here holds it to that).

// linkKey names a file's content and metadata.
func linkKey(digest sum, h *tar.Header) sum {
	attrs := xattrs(h)
	type pair struct{ Name, Value string }
	var pairs []pair
	for _, name := range slices.Sorted(maps.Keys(attrs)) {
		pairs = append(pairs, pair{name, fmt.Sprintf("%x", attrs[name])})
	}
	key, err := json.Marshal(struct {
		Digest     sum
		Uid, Gid   int
		Mode       int64
		Sec, Nsec  int64
		Attributes []pair
	}{digest, h.Uid, h.Gid, h.Mode & 0o7777, h.ModTime.Unix(), int64(h.ModTime.Nanosecond()), pairs})
	if err != nil {
		panic(err) // numbers and strings always marshal
	}
	return sha256.Sum256(key)
}

// linkFile stores content with its metadata and places a link to it, starting
// another object when one has all the links that the file system allows.
func (a *adding) linkFile(h *tar.Header, c *content, in ingested) error {
	key := linkKey(c.digest, h)
	at, err := a.tree.vacate(h.Name)
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		c.object = fmt.Sprintf("%x.%d", key[:], i)
		path, isNew, err := a.find(c.object, key)
		if err != nil {
			return err
		}
		if isNew {
			if err := a.become(in, path, *c, key); err != nil {
				return err
			}
			if err := setAttributes(path, h); err != nil {
				return err
			}
		}
		err = unix.Link(path, at.path)
		if errors.Is(err, unix.EMLINK) {
			continue
		}
		if !isNew {
			in.discard()
		}
		return err
	}
}
