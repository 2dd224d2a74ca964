// Package buildcontext sends a directory to an engine that builds from it.
//
// A Context is the list of files that .dockerignore leaves; Digest and Tar read
// them anew each time, so a file that changes in between gives a tar that does
// not fit its digest, and at worst one build too many. Only regular files,
// directories and symbolic links are sent; all belong to root, so that the
// image does not depend on who builds it.
package buildcontext

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"github.com/minke-os/minke/internal/errdef"
)

// A Context is a directory to build from.
type Context struct {
	dir        string
	dockerfile string   // slash-separated, below dir
	expanded   []byte   // the Dockerfile's content
	files      []string // slash-separated, in order
}

// Open lists a directory. expand rewrites the Dockerfile; nil leaves it alone.
func Open(dir, dockerfile string, expand func([]byte) []byte) (*Context, error) {
	c := &Context{dir: dir, dockerfile: filepath.ToSlash(filepath.Clean(dockerfile))}
	if strings.HasPrefix(c.dockerfile, "../") || filepath.IsAbs(dockerfile) {
		return nil, errdef.Invalid.Errorf("the Dockerfile %s is outside of the build context %s", dockerfile, dir)
	}
	data, err := os.ReadFile(filepath.Join(dir, dockerfile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errdef.NotFound.Errorf("no Dockerfile %s in %s", dockerfile, dir)
	}
	if err != nil {
		return nil, err
	}
	c.expanded = data
	if expand != nil {
		c.expanded = expand(data)
	}
	return c, c.list(dockerfile)
}

// elsewhere is how a Dockerfile is sent that is not in the directory.
const elsewhere = ".minke.Dockerfile"

// OpenWith lists a directory that is built by a Dockerfile from elsewhere.
func OpenWith(dir string, dockerfile []byte) (*Context, error) {
	c := &Context{dir: dir, dockerfile: elsewhere, expanded: dockerfile}
	if err := c.list(""); err != nil {
		return nil, err
	}
	c.files = append(c.files, elsewhere)
	return c, nil
}

// Dockerfile is the name that the builder finds it by.
func (c *Context) Dockerfile() string { return c.dockerfile }

func (c *Context) list(dockerfile string) error {
	ignore, err := readIgnore(c.dir, dockerfile)
	if err != nil {
		return err
	}
	if err := filepath.WalkDir(c.dir, c.visit(ignore)); err != nil {
		return fmt.Errorf("read build context: %w", err)
	}
	return nil
}

// readIgnore reads <Dockerfile>.dockerignore, else .dockerignore.
func readIgnore(dir, dockerfile string) (*patternmatcher.PatternMatcher, error) {
	for _, name := range []string{dockerfile + ".dockerignore", ".dockerignore"} {
		f, err := os.Open(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		patterns, err := ignorefile.ReadAll(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		return patternmatcher.New(patterns)
	}
	return patternmatcher.New(nil)
}

func (c *Context) visit(ignore *patternmatcher.PatternMatcher) fs.WalkDirFunc {
	return func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(c.dir, path)
		if err != nil || rel == "." {
			return err
		}
		name := filepath.ToSlash(rel)
		skip, err := ignore.MatchesOrParentMatches(name)
		if err != nil {
			return err
		}
		switch {
		case name == elsewhere:
			return errdef.Invalid.Errorf("%s is a name that minke needs itself", elsewhere)
		case name == c.dockerfile: // the builder needs it whatever is ignored
		case skip && d.IsDir() && !ignore.Exclusions() && !strings.HasPrefix(c.dockerfile, name+"/"):
			return filepath.SkipDir
		case skip:
			return nil
		}
		if d.IsDir() || d.Type().IsRegular() || d.Type()&fs.ModeSymlink != 0 {
			c.files = append(c.files, name)
		}
		return nil
	}
}

// Digest depends on everything the builder sees but the times of files.
func (c *Context) Digest(extra ...string) (string, error) {
	h := sha256.New()
	for _, s := range extra {
		fmt.Fprintf(h, "%q\n", s)
	}
	err := c.each(func(hdr *tar.Header, content io.Reader) error {
		fmt.Fprintf(h, "%q %q %o %d\n", hdr.Name, hdr.Linkname, hdr.Mode, hdr.Size)
		_, err := io.Copy(h, content)
		return err
	})
	return hex.EncodeToString(h.Sum(nil)), err
}

// Tar writes the context as the body of POST /build.
func (c *Context) Tar(w io.Writer) error {
	tw := tar.NewWriter(w)
	err := c.each(func(hdr *tar.Header, content io.Reader) error {
		if err := tw.WriteHeader(hdr); err != nil {
			return err
		}
		_, err := io.Copy(tw, content)
		return err
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

func (c *Context) each(f func(*tar.Header, io.Reader) error) error {
	for _, name := range c.files {
		if err := c.one(name, f); err != nil {
			return fmt.Errorf("read build context: %w", err)
		}
	}
	return nil
}

func (c *Context) one(name string, f func(*tar.Header, io.Reader) error) error {
	if name == elsewhere {
		return f(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(c.expanded))}, bytes.NewReader(c.expanded))
	}
	path := filepath.Join(c.dir, filepath.FromSlash(name))
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	link := ""
	if st.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(path); err != nil {
			return err
		}
	}
	hdr, err := tar.FileInfoHeader(st, filepath.ToSlash(link))
	if err != nil {
		return err
	}
	hdr.Name = name
	if st.IsDir() {
		hdr.Name += "/"
	}
	hdr.Uid, hdr.Gid, hdr.Uname, hdr.Gname = 0, 0, "", ""
	if name == c.dockerfile {
		hdr.Size = int64(len(c.expanded))
		return f(hdr, bytes.NewReader(c.expanded))
	}
	if !st.Mode().IsRegular() {
		return f(hdr, strings.NewReader(""))
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	// A log that grows meanwhile must not spoil the tar.
	return f(hdr, io.LimitReader(file, hdr.Size))
}
