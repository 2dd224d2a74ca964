package build

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"github.com/minke-os/minke/engine/archive"
	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/overlay"
	"github.com/minke-os/minke/oci"
)

// maxDockerfile bounds what is read into memory.
const maxDockerfile = 4 << 20

// A source is a tree that files are copied from, or looked up in: the context
// or an image. The context hides what .dockerignore excludes.
type source struct {
	root    *os.Root
	mount   *os.File
	ignore  *patternmatcher.PatternMatcher // nil hides nothing
	context bool
}

func openSource(s *store.Store, chain oci.ChainID) (*source, error) {
	m, err := s.Mount(chain)
	if err != nil {
		return nil, err
	}
	f, err := m.Open()
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(overlay.Path(f))
	if err != nil {
		f.Close()
		return nil, err
	}
	return &source{root: root, mount: f}, nil
}

func (s *source) close() {
	s.root.Close()
	s.mount.Close()
}

// hides reports whether .dockerignore excludes a path.
func (s *source) hides(rel string) (bool, error) {
	if s.ignore == nil || rel == "." {
		return false, nil
	}
	return s.ignore.MatchesOrParentMatches(rel)
}

// open opens a file to be read. To open what is none, such as a fifo, could
// take for ever.
func (s *source) open(name string) (*os.File, error) {
	fi, err := s.root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, errdef.Invalid.Errorf("it is not a file")
	}
	return s.root.Open(name)
}

// of gives the view of an image's layers, which stays open until the build
// ends.
func (b *builder) of(chain oci.ChainID) (*source, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s, ok := b.sources[chain]; ok {
		return s, nil
	}
	s, err := openSource(b.Store, chain)
	if err != nil {
		return nil, err
	}
	if b.sources == nil {
		b.sources = map[oci.ChainID]*source{}
	}
	b.sources[chain] = s
	return s, nil
}

// readContext stores the context and reads the Dockerfile and .dockerignore.
func (b *builder) readContext(ctx context.Context, r io.Reader) error {
	plain, err := archive.Decompress(r)
	if err != nil {
		return fmt.Errorf("build context: %w", err)
	}
	defer plain.Close()
	br := bufio.NewReaderSize(plain, 64<<10)
	head, err := br.Peek(512)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("build context: %w", err)
	}
	if !archive.IsTar(head) {
		return b.dockerfileOnly(ctx, br)
	}
	l, err := b.Store.AddLayer(ctx, "", br)
	if err != nil {
		return fmt.Errorf("build context: %w", err)
	}
	if b.files, err = openSource(b.Store, l.ChainID); err != nil {
		return fmt.Errorf("build context: %w", err)
	}
	b.files.context, b.filesChain = true, l.ChainID
	if b.dockerfile, err = b.findDockerfile(); err != nil {
		return err
	}
	return b.readIgnore()
}

// dockerfileOnly takes the stream for a Dockerfile, with an empty context.
func (b *builder) dockerfileOnly(ctx context.Context, r io.Reader) error {
	text, err := readMost(r)
	if err != nil {
		return fmt.Errorf("Dockerfile: %w", err)
	}
	l, err := b.Store.AddLayer(ctx, "", bytes.NewReader(nil))
	if err != nil {
		return err
	}
	b.dockerfile, b.filesChain = text, l.ChainID
	b.files, err = openSource(b.Store, l.ChainID)
	return err
}

func readMost(r io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxDockerfile+1))
	if err == nil && len(text) > maxDockerfile {
		err = errdef.Invalid.Errorf("larger than %d bytes", maxDockerfile)
	}
	return text, err
}

func (b *builder) dockerfileName() string {
	if b.o.Dockerfile == "" {
		return "Dockerfile"
	}
	return strings.TrimPrefix(path.Clean("/"+b.o.Dockerfile), "/")
}

func (b *builder) findDockerfile() ([]byte, error) {
	name := b.dockerfileName()
	f, err := b.files.open(name)
	if errors.Is(err, fs.ErrNotExist) && b.o.Dockerfile == "" {
		f, err = b.files.open("dockerfile")
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errdef.Invalid.Errorf("Cannot locate specified Dockerfile: %s", name)
	}
	if err != nil {
		return nil, errdef.Invalid.Errorf("Dockerfile %s: %w", name, err)
	}
	defer f.Close()
	text, err := readMost(f)
	if err != nil {
		return nil, errdef.Invalid.Errorf("Dockerfile %s: %w", name, err)
	}
	return text, nil
}

// readIgnore prefers the ignore file that belongs to the Dockerfile alone.
func (b *builder) readIgnore() error {
	for _, name := range []string{b.dockerfileName() + ".dockerignore", ".dockerignore"} {
		f, err := b.files.open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return errdef.Invalid.Errorf("%s: %w", name, err)
		}
		defer f.Close()
		patterns, err := ignorefile.ReadAll(f)
		if err != nil {
			return errdef.Invalid.Errorf("%s: %w", name, err)
		}
		if b.files.ignore, err = patternmatcher.New(patterns); err != nil {
			return errdef.Invalid.Errorf("%s: %w", name, err)
		}
		return nil
	}
	return nil
}
