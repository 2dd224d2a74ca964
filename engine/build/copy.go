package build

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path"
	"strings"
	"syscall"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/moby/patternmatcher"

	"github.com/minke-os/minke/engine/build/dockerfile"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/overlay"
	"github.com/minke-os/minke/oci"
)

// A copying is one COPY or ADD on its way to a layer.
type copying struct {
	*stage
	verb   string
	flags  string // as the history has them, "--chown=1000 "
	dest   string // as written
	target string // in the image, links resolved, without the leading slash
	isDir  bool   // what is copied goes into target, not in its place
	isFile bool   // target is there and no directory
	view   *source
	uid    int
	gid    int
	mode   modeChange // nil keeps that of the source

	exclude    *patternmatcher.PatternMatcher // --exclude; nil excludes nothing
	parentDirs bool                           // --parents
	pivot      string                         // of the source in work: with --parents, what is above it is left out

	files   []member
	hashes  []string // of each source: "file:…", "dir:…"
	created map[string]bool
}

// A member is one entry of the layer, or an archive whose entries are.
type member struct {
	tar.Header // Name is the path in the image
	open       func() (io.ReadCloser, error)
	unpack     bool
}

func (st *stage) copy(ctx context.Context, c *dockerfile.Copy) error {
	cp, err := st.newCopying(copyOrder{c.Sources, "COPY", c.Parents})
	if err != nil {
		return err
	}
	from := st.files
	if c.From != "" {
		if from, err = st.copyFrom(ctx, c.From); err != nil {
			return err
		}
	}
	for _, pattern := range c.Paths {
		if err := cp.sources(from, pattern, false); err != nil {
			return err
		}
	}
	return cp.finish(ctx)
}

// copyFrom opens the stage or image that --from names.
func (st *stage) copyFrom(ctx context.Context, name string) (*source, error) {
	name, err := st.expand(name)
	if err != nil {
		return nil, err
	}
	chain, err := st.layersOf(ctx, name)
	if err != nil {
		return nil, err
	}
	return st.of(chain)
}

// layersOf gives the layers of a stage or an image.
func (st *stage) layersOf(ctx context.Context, name string) (oci.ChainID, error) {
	earlier := st.earlier(name)
	if i, ok := stageNumber(name, st.index); ok {
		earlier = st.stages[i]
	}
	if earlier != nil {
		if err := st.await(ctx, earlier); err != nil {
			return "", err
		}
		return earlier.chain, nil
	}
	id, err := st.find(ctx, name, st.o.Platform)
	if err != nil {
		return "", fmt.Errorf("invalid from flag value %s: %w", name, err)
	}
	var image stage
	image.builder = st.builder
	if err := image.adopt(id); err != nil {
		return "", err
	}
	return image.chain, nil
}

// A copyOrder is what COPY and ADD have in common.
type copyOrder struct {
	dockerfile.Sources
	verb    string
	parents bool
}

func (st *stage) newCopying(o copyOrder) (*copying, error) {
	view, err := st.of(st.chain)
	if err != nil {
		return nil, err
	}
	cp := &copying{stage: st, verb: o.verb, dest: o.Dest, view: view, parentDirs: o.parents, created: map[string]bool{}}
	if o.Chown != "" {
		cp.flags += "--chown=" + o.Chown + " "
		if cp.uid, cp.gid, err = owner(view.root, o.Chown); err != nil {
			return nil, err
		}
	}
	if o.Chmod != "" {
		cp.flags += "--chmod=" + o.Chmod + " "
		if cp.mode, err = parseMode(o.Chmod); err != nil {
			return nil, err
		}
	}
	if o.parents {
		cp.flags += "--parents "
	}
	for _, pattern := range o.Exclude {
		cp.flags += "--exclude=" + pattern + " "
	}
	if len(o.Exclude) > 0 {
		if cp.exclude, err = patternmatcher.New(o.Exclude); err != nil {
			return nil, errdef.Invalid.Errorf("--exclude: %w", err)
		}
	}
	if err := cp.aim(); err != nil {
		return nil, err
	}
	if err := cp.inline(o.Inline); err != nil {
		return nil, err
	}
	return cp, nil
}

// aim finds out where the destination is.
func (cp *copying) aim() error {
	var err error
	slash := cp.parentDirs || strings.HasSuffix(cp.dest, "/") || cp.dest == "." || strings.HasSuffix(cp.dest, "/.")
	if cp.target, err = cp.view.resolve(joined(cp.config.Config.WorkingDir, cp.dest)); err != nil {
		return err
	}
	fi, err := cp.view.root.Lstat(dot(cp.target))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		cp.isDir = slash
	case errors.Is(err, syscall.ENOTDIR):
		return notDirectory(path.Dir(cp.dest))
	case err != nil:
		return err
	case fi.IsDir():
		cp.isDir = true
	case slash:
		return notDirectory(cp.dest)
	default:
		cp.isFile = true
	}
	return nil
}

func notDirectory(name string) error {
	return errdef.Invalid.Errorf("cannot copy to non-directory: %s", name)
}

// resolve follows the links in an absolute path within the source, as a
// process with that root would, and gives it without the leading slash.
func (s *source) resolve(abs string) (string, error) {
	base := overlay.Path(s.mount)
	full, err := securejoin.SecureJoin(base, abs)
	if err != nil {
		return "", err
	}
	return strings.TrimPrefix(strings.TrimPrefix(full, base), "/"), nil
}

func dot(rel string) string {
	if rel == "" {
		return "."
	}
	return rel
}

// sources adds what a pattern matches.
func (cp *copying) sources(from *source, pattern string, unpack bool) error {
	pivot, _, _ := strings.Cut(pattern, "/./")
	if pivot == pattern {
		pivot = ""
	}
	cp.pivot = strings.TrimPrefix(path.Clean("/"+pivot), "/")
	rel := dot(strings.TrimPrefix(path.Clean("/"+pattern), "/"))
	if !strings.ContainsAny(rel, `*?[\`) {
		return cp.source(from, rel, unpack)
	}
	matches, err := fs.Glob(from.root.FS(), rel)
	if err != nil {
		return errdef.Invalid.Errorf("%s failed: %s: %w", cp.verb, pattern, err)
	}
	found := false
	for _, m := range matches {
		hidden, err := from.hides(m)
		if err != nil {
			return err
		}
		if hidden && !from.mayHold() {
			continue
		}
		if err := cp.source(from, m, unpack); err == nil {
			found = true
		} else if !hidden {
			return err
		}
	}
	if !found {
		return errdef.Invalid.Errorf("%s failed: no source files were specified", cp.verb)
	}
	return nil
}

// mayHold reports whether a hidden directory may have files that are not.
func (s *source) mayHold() bool { return s.ignore != nil && s.ignore.Exclusions() }

// source adds one file or directory.
func (cp *copying) source(from *source, rel string, unpack bool) error {
	hidden, err := from.hides(rel)
	if err != nil {
		return err
	}
	fi, err := from.root.Stat(rel)
	if errors.Is(err, fs.ErrNotExist) || err == nil && hidden && !(fi.IsDir() && from.mayHold()) {
		if from.context {
			return errdef.Invalid.Errorf("%s failed: file not found in build context or excluded by .dockerignore: stat %s: file does not exist", cp.verb, rel)
		}
		return errdef.Invalid.Errorf("%s failed: stat %s: file does not exist", cp.verb, rel)
	}
	if err != nil {
		return errdef.Invalid.Errorf("%s failed: %s: %w", cp.verb, rel, err)
	}
	if cp.exclude != nil && !fi.IsDir() {
		if out, err := cp.exclude.MatchesOrParentMatches(path.Base(rel)); err != nil || out {
			return err
		}
	}
	here := len(cp.files)
	if fi.IsDir() && cp.isFile {
		return fmt.Errorf("%s failed: %w", cp.verb, notDirectory(cp.dest))
	}
	if fi.IsDir() {
		err = cp.directory(from, rel)
	} else {
		err = cp.file(from, rel, fi, unpack)
	}
	if err != nil {
		return fmt.Errorf("%s failed: %w", cp.verb, err)
	}
	return cp.hash(fi.IsDir(), cp.files[here:])
}

func (cp *copying) file(from *source, rel string, fi fs.FileInfo, unpack bool) error {
	m, err := cp.memberOf(from, rel, cp.place(cp.kept(rel)), fi)
	if err != nil {
		return err
	}
	if unpack {
		if m.unpack, err = isArchive(m.open); err != nil {
			return err
		}
		if m.unpack {
			m.Name = cp.target
		}
	}
	cp.files = append(cp.files, m)
	return nil
}

// kept is how much of a source's path remains below the destination.
func (cp *copying) kept(rel string) string {
	if !cp.parentDirs {
		return path.Base(rel)
	}
	return strings.TrimPrefix(strings.TrimPrefix(rel, cp.pivot), "/")
}

// place is where a file goes.
func (cp *copying) place(base string) string {
	if cp.isDir {
		return path.Join(cp.target, base)
	}
	return cp.target
}

// directory adds what is in a directory, in the order of names.
func (cp *copying) directory(from *source, top string) error {
	return fs.WalkDir(from.root.FS(), top, func(rel string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		hidden, err := from.hides(rel)
		if err != nil {
			return err
		}
		if hidden && d.IsDir() && !from.mayHold() {
			return fs.SkipDir
		}
		below := strings.TrimPrefix(strings.TrimPrefix(rel, top), "/")
		if top == "." {
			below = rel
		}
		if !hidden && rel != top && cp.exclude != nil {
			if hidden, err = cp.exclude.MatchesOrParentMatches(below); err != nil {
				return err
			}
			if hidden && d.IsDir() && !cp.exclude.Exclusions() {
				return fs.SkipDir
			}
		}
		if hidden || d.Type()&fs.ModeSocket != 0 {
			return nil
		}
		name := path.Join(cp.target, below)
		if cp.parentDirs {
			name = path.Join(cp.target, cp.kept(rel))
		}
		if rel == top && (name == "" || cp.exists(name)) {
			return nil // a directory that is there stays as it is
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		m, err := cp.memberOf(from, rel, name, fi)
		if err != nil {
			return err
		}
		cp.files = append(cp.files, m)
		return nil
	})
}

func (cp *copying) exists(name string) bool {
	fi, err := cp.view.root.Lstat(dot(name))
	return err == nil && fi.IsDir()
}

// inline adds here-documents.
func (cp *copying) inline(docs []dockerfile.Heredoc) error {
	for _, doc := range docs {
		text := doc.Content()
		if doc.Expand {
			lex := *cp.lex
			lex.RawQuotes, lex.RawEscapes = true, true
			var err error
			if text, _, err = lex.ProcessWord(text, cp.env()); err != nil {
				return errdef.Invalid.Wrap(err)
			}
		}
		m := member{open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil }}
		m.Header = tar.Header{Typeflag: tar.TypeReg, Name: cp.place(doc.Name), Size: int64(len(text)), Mode: 0o644, ModTime: cp.now}
		cp.own(&m.Header)
		cp.files = append(cp.files, m)
		if err := cp.hash(false, cp.files[len(cp.files)-1:]); err != nil {
			return err
		}
	}
	return nil
}

func (cp *copying) own(h *tar.Header) {
	h.Uid, h.Gid = cp.uid, cp.gid
	if cp.mode != nil && h.Typeflag != tar.TypeSymlink {
		h.Mode = cp.mode(h.Mode, h.Typeflag == tar.TypeDir)
	}
}

// hash notes a digest of one source: names, modes, owners and content, but
// not times, which change with every checkout.
func (cp *copying) hash(isDir bool, files []member) error {
	kind := "file"
	if isDir {
		kind = "dir"
	}
	h := sha256.New()
	for _, m := range files {
		if err := m.hash(h, cp.target); err != nil {
			return fmt.Errorf("%s failed: %w", cp.verb, err)
		}
	}
	cp.hashes = append(cp.hashes, fmt.Sprintf("%s:%x", kind, h.Sum(nil)))
	return nil
}

func (m *member) hash(h hash.Hash, base string) error {
	fmt.Fprintf(h, "%q %c %o %d:%d %q %d:%d %d %v\n", strings.TrimPrefix(m.Name, base), m.Typeflag, m.Mode, m.Uid, m.Gid,
		m.Linkname, m.Devmajor, m.Devminor, m.Size, m.PAXRecords)
	if m.open == nil {
		return nil
	}
	r, err := m.open()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(h, r)
	return err
}

// finish makes the layer, unless the cache has it.
func (cp *copying) finish(ctx context.Context) error {
	if len(cp.hashes) == 0 {
		return errdef.Invalid.Errorf("%s failed: no source files were specified", cp.verb)
	}
	if len(cp.hashes) > 1 && !cp.isDir {
		return errdef.Invalid.Errorf("When using %s with more than one source file, the destination must be a directory and end with a /", cp.verb)
	}
	digest := cp.hashes[0]
	if len(cp.hashes) > 1 {
		digest = fmt.Sprintf("multi:%x", sha256.Sum256([]byte(strings.Join(cp.hashes, ","))))
	}
	createdBy := fmt.Sprintf("%s #(nop) %s %s%s in %s ", strings.Join(shellOf(cp.config.Config), " "), cp.verb, cp.flags, digest, cp.dest)
	if cp.hit(ctx, createdBy) {
		return nil
	}
	l, err := cp.Store.AddPacked(ctx, cp.chain, cp.write)
	if err != nil {
		return fmt.Errorf("%s failed: %w", cp.verb, err)
	}
	return cp.commit(ctx, createdBy, &l)
}

// write is the layer as a tar.
func (cp *copying) write(w io.Writer) error {
	tw := tar.NewWriter(w)
	for i := range cp.files {
		m := &cp.files[i]
		if m.unpack {
			if err := cp.unpack(tw, m); err != nil {
				return err
			}
			continue
		}
		if err := cp.entry(tw, m.Header, m.open); err != nil {
			return err
		}
	}
	return tw.Close()
}

func (cp *copying) entry(tw *tar.Writer, h tar.Header, open func() (io.ReadCloser, error)) error {
	if err := cp.parents(tw, path.Dir(h.Name)); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		cp.created[h.Name] = true
		h.Name += "/"
	}
	if err := tw.WriteHeader(&h); err != nil || open == nil {
		return err
	}
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(tw, r)
	return err
}

// parents writes the directories above an entry that the image does not have.
func (cp *copying) parents(tw *tar.Writer, dir string) error {
	if dir == "." || dir == "/" || cp.created[dir] || cp.exists(dir) {
		return nil
	}
	if err := cp.parents(tw, path.Dir(dir)); err != nil {
		return err
	}
	cp.created[dir] = true
	return tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, Uid: cp.uid, Gid: cp.gid, ModTime: cp.now})
}
