package build

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"
	"time"

	"github.com/minke-os/minke/engine/build/dockerfile"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// add is ADD: COPY that unpacks local archives and fetches URLs.
func (st *stage) add(ctx context.Context, c *dockerfile.Add) error {
	if c.KeepGitDir != nil {
		return errGit
	}
	cp, err := st.newCopying(copyOrder{c.Sources, "ADD", false})
	if err != nil {
		return err
	}
	for _, src := range c.Paths {
		if IsGit(src) {
			return errGit
		}
		if isURL(src) {
			f, err := cp.fetch(ctx, src, c)
			if err != nil {
				return fmt.Errorf("ADD failed: %w", err)
			}
			defer f.Close()
			continue
		}
		if c.Checksum != "" {
			return errdef.Invalid.Errorf("checksum can't be specified for non-HTTP(S) sources")
		}
		if err := cp.sources(st.files, src, c.Unpack == nil || *c.Unpack); err != nil {
			return err
		}
	}
	return cp.finish(ctx)
}

// errGit says what devices do not have: a git client, which the engine would
// have to run.
var errGit = errdef.Unsupported.Errorf("git repositories are no source for ADD here; clone it beside the Dockerfile, or ADD the archive that its server offers with --unpack")

// IsGit reports whether a source or a context is a git repository, as Docker
// tells them.
func IsGit(s string) bool {
	location, _, _ := strings.Cut(s, "#")
	return strings.HasPrefix(s, "github.com/") || strings.HasPrefix(s, "git@") || strings.HasPrefix(s, "git://") || strings.HasPrefix(s, "ssh://") || isURL(s) && strings.HasSuffix(location, ".git")
}

func isURL(s string) bool {
	return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://")
}

// fetch downloads a file, which must stay open until it is copied.
func (cp *copying) fetch(ctx context.Context, from string, c *dockerfile.Add) (*os.File, error) {
	u, err := url.Parse(from)
	if err != nil {
		return nil, errdef.Invalid.Wrap(err)
	}
	base := path.Base(u.Path)
	if cp.isDir && (base == "/" || base == "." || strings.HasSuffix(u.Path, "/")) {
		return nil, errdef.Invalid.Errorf("cannot determine filename from url: %s", from)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, errdef.Invalid.Wrap(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, errdef.Unavailable.Wrap(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 400 {
		return nil, errdef.Unavailable.Errorf("%s: %s", from, resp.Status)
	}
	f, err := cp.Store.TempFile()
	if err != nil {
		return nil, err
	}
	size, err := io.Copy(f, resp.Body)
	if err != nil {
		f.Close()
		return nil, errdef.Unavailable.Errorf("%s: %w", from, err)
	}
	m := member{open: func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(f, 0, size)), nil }}
	m.Header = tar.Header{Typeflag: tar.TypeReg, Name: cp.place(base), Size: size, Mode: 0o600, ModTime: lastModified(resp)}
	cp.own(&m.Header)
	err = m.verify(c.Checksum)
	if err == nil && c.Unpack != nil && *c.Unpack {
		if m.unpack, err = isArchive(m.open); m.unpack {
			m.Name = cp.target
		}
	}
	cp.files = append(cp.files, m)
	if err == nil {
		err = cp.hash(false, cp.files[len(cp.files)-1:])
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	return f, nil
}

func lastModified(resp *http.Response) time.Time {
	at, err := http.ParseTime(resp.Header.Get("Last-Modified"))
	if err != nil {
		return time.Unix(0, 0)
	}
	return at
}

// verify checks ADD --checksum.
func (m *member) verify(checksum string) error {
	if checksum == "" {
		return nil
	}
	want, err := oci.ParseDigest(checksum)
	if err != nil {
		return errdef.Invalid.Wrap(err)
	}
	got, err := contentDigest(m.open)
	if err == nil && got != want {
		err = errdef.Invalid.Errorf("digest mismatch %s: %s", got, want)
	}
	return err
}
