package store

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// A Problem is one thing in the store that is not as it must be.
type Problem struct {
	What string // "layer sha256:…: bin/sh: its owner is 0:7, not 0:0"

	layer  oci.ChainID // that is damaged, if one is
	object string      // that is damaged, if one is
	record string      // bucket/key that is damaged, if one is
}

// A Report is what Check found.
type Report struct {
	Layers, Images, Objects int   // that were looked at
	Bytes                   int64 // of content that were hashed
	Problems                []Problem
}

// Check reads everything that the store has and compares it with what it must
// be: the database's pages, each record, each object with its digest, each
// layer's tar with its diff ID, and each file, link and attribute of a layer
// with its tar. It changes nothing, may run beside everything else, and takes
// as long as reading all of the store.
//
// The error is of the check itself; damage is in the report.
func (s *Store) Check(ctx context.Context) (Report, error) {
	c := &checker{s: s, verified: map[string]bool{}, buf: make([]byte, chunk)}
	for _, step := range []func(context.Context) error{c.database, c.layers, c.images, c.orphans} {
		if err := step(ctx); err != nil {
			return c.Report, fmt.Errorf("check store: %w", err)
		}
	}
	return c.Report, nil
}

// A checker is one run of Check.
type checker struct {
	Report
	s        *Store
	verified map[string]bool // objects that were hashed: whether they are right
	buf      []byte
}

func (c *checker) found(p Problem, format string, args ...any) {
	p.What = fmt.Sprintf(format, args...)
	c.Problems = append(c.Problems, p)
}

// database checks the pages of the file that all records are in. It holds
// writers up meanwhile, for bbolt compares with the list of free pages as it is
// now, and a page that a writer frees would look damaged.
func (c *checker) database(context.Context) error {
	tx, err := c.s.db.Begin(true)
	if err != nil {
		return err
	}
	for err := range tx.Check() {
		c.found(Problem{}, "database: %v; keep a copy of minke.db and start with an empty data root", err)
	}
	return tx.Rollback()
}

func (c *checker) layers(ctx context.Context) error {
	ids, err := c.s.layerIDs()
	if err != nil {
		return err
	}
	for _, id := range ids {
		release, err := c.s.Lease(id)
		if err != nil {
			return err
		}
		err = c.layer(ctx, id)
		release()
		if err != nil {
			return err
		}
	}
	return nil
}

// layer checks one layer: that its tar has the right digest, which checks all
// objects in it on the way, and that its files are what the tar says.
func (c *checker) layer(ctx context.Context, id oci.ChainID) error {
	var r layerRecord
	err := c.s.view(func(t tables) (err error) {
		r, err = t.layer(id)
		return err
	})
	if errdef.Is(err, errdef.NotFound) {
		return nil // removed meanwhile
	}
	c.Layers++
	if err == nil && oci.Chain(r.Parent, r.DiffID) != id {
		err = fmt.Errorf("its record names layer %s on %q, whose chain ID is another", r.DiffID, r.Parent)
	}
	if err != nil {
		c.found(Problem{layer: id}, "layer %s: %v", id, err)
		return nil
	}
	before := len(c.Problems)
	tar := sha256.New()
	want, err := expect(func(w io.Writer, file func(content)) error {
		return c.replay(ctx, id, io.MultiWriter(tar, w), file)
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		c.found(Problem{layer: id}, "layer %s: %v", r.DiffID, err)
		return nil
	}
	if got := oci.FromHash(tar); got != oci.Digest(r.DiffID) && len(c.Problems) == before {
		c.found(Problem{layer: id}, "layer %s: its tar has the digest %s", r.DiffID, got)
	}
	return c.compare(id, r, want)
}

// compare looks for differences between a layer's directory and its tar.
func (c *checker) compare(id oci.ChainID, r layerRecord, want *expected) error {
	differs := func(rel, what string) {
		c.found(Problem{layer: id}, "layer %s: %s: %s", r.DiffID, rel, what)
	}
	if err := want.compare(c.s, c.s.layerPath(id, "diff"), r.Links, differs); err != nil {
		c.found(Problem{layer: id}, "layer %s: %v", r.DiffID, err)
	}
	return nil
}

// replay writes a layer's tar, with zeros for content that is not there, and
// hashes each object that it meets for the first time.
func (c *checker) replay(ctx context.Context, id oci.ChainID, w io.Writer, file func(content)) error {
	return readToc(c.s.layerPath(id, "toc"),
		func(p []byte) error {
			_, err := w.Write(p)
			return err
		},
		func(o content) error {
			file(o)
			if err := ctx.Err(); err != nil || o.size == 0 {
				return err
			}
			out := w
			if o.sparse {
				out = io.Discard
			}
			return c.object(id, o, out)
		})
}

// object copies an object's bytes and checks them if that was not done yet.
func (c *checker) object(id oci.ChainID, o content, w io.Writer) error {
	_, known := c.verified[o.object]
	h := sha256.New()
	if !known {
		w = io.MultiWriter(w, h)
	}
	n, err := c.copyObject(o, w)
	if _, werr := io.CopyN(w, zeros{}, o.size-n); werr != nil {
		return werr
	}
	if known {
		return nil
	}
	c.verified[o.object] = err == nil && oci.FromHash(h) == o.digest.digest()
	if !c.verified[o.object] {
		c.found(Problem{object: o.object, layer: id}, "object %s: its content is not what the digest %s says: %v", objectPath(o.object), o.digest.digest(), cmp.Or(err, errDamaged))
	}
	return nil
}

var errDamaged = errors.New("the disk gives other bytes")

func (c *checker) copyObject(o content, w io.Writer) (int64, error) {
	f, err := os.Open(c.s.objectFile(o.object))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	c.Objects++
	n, err := io.CopyBuffer(w, onlyReader{io.LimitReader(f, o.size)}, c.buf)
	c.Bytes += n
	if fi, serr := f.Stat(); err == nil && serr == nil && fi.Size() != o.size {
		err = fmt.Errorf("it has %d bytes, not %d", fi.Size(), o.size)
	}
	return n, err
}

// zeros is an endless file of them.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// images checks images and names, which must lead to layers.
func (c *checker) images(context.Context) error {
	return c.s.view(func(t tables) error {
		for key := range keys(t.images) {
			c.Images++
			if _, err := t.fullImage(oci.ImageID(key)); err != nil {
				c.found(Problem{record: string(imagesBucket) + "/" + key}, "image %s: %v", key, err)
			}
		}
		for key, v := range keys(t.manifests) {
			if _, err := parseManifest(key, v); err != nil {
				c.found(Problem{record: string(manifestsBucket) + "/" + key}, "manifest %s: %v", key, err)
			}
		}
		for key, v := range keys(t.names) {
			if t.images.Get(v) == nil {
				c.found(Problem{record: string(namesBucket) + "/" + key}, "name %s: the image %s is missing", key, v)
			}
		}
		return nil
	})
}

// orphans checks the objects that no layer has. The next layer may take them
// for its own.
func (c *checker) orphans(ctx context.Context) error {
	for i := range len(alphabet) {
		letter := alphabet[i : i+1]
		objects, err := os.ReadDir(c.s.objectDir(letter))
		if err != nil {
			return err
		}
		for _, o := range objects {
			name := letter + o.Name()
			if _, done := c.verified[name]; done || len(name) != nameLen {
				continue // one for links has its digest in a toc alone
			}
			if err := c.orphan(ctx, name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *checker) orphan(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f, err := os.Open(c.s.objectFile(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // collected meanwhile
	}
	if err != nil {
		return err
	}
	defer f.Close()
	c.Objects++
	h := sha256.New()
	n, err := io.CopyBuffer(h, onlyReader{f}, c.buf)
	c.Bytes += n
	var got, marked sum
	h.Sum(got[:0])
	_, xerr := unix.Fgetxattr(int(f.Fd()), digestAttr, marked[:])
	if err := cmp.Or(err, xerr); err != nil || got != marked || got.name() != name {
		c.found(Problem{object: name}, "object %s: its content is not what its name and mark say: %v", objectPath(name), cmp.Or(err, errDamaged))
	}
	return nil
}

// Summary is the report in a line.
func (r Report) Summary() string {
	state := "all is well"
	if n := len(r.Problems); n == 1 {
		state = "1 problem"
	} else if n > 1 {
		state = fmt.Sprintf("%d problems", n)
	}
	return fmt.Sprintf("checked %d images, %d layers, %d objects with %d bytes: %s", r.Images, r.Layers, r.Objects, r.Bytes, state)
}
