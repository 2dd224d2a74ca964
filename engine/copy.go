package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/minke-os/minke/engine/internal/spec"
	"github.com/minke-os/minke/engine/internal/tarfs"
	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/overlay"
	"github.com/minke-os/minke/internal/userns"
)

// copyTree copies directory name of an image's view into dir; a name that is
// not there, or no directory, is nothing to copy.
func copyTree(view, name, dir string) error {
	source, err := openRootIn(view, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotDir) {
		return nil
	}
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer target.Close()
	return tarfs.Copy(source, target)
}

var errNotDir = errors.New("not a directory")

// openRootIn opens directory name below root, following links as a process
// with that root would.
func openRootIn(root, name string) (*os.Root, error) {
	h, err := pathrs.OpenInRoot(root, name)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	fi, err := h.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		return nil, fmt.Errorf("%s: %w", name, errNotDir)
	}
	return os.OpenRoot(overlay.Path(h))
}

// A tree is a container's files as a process in it sees them. For a stopped
// container volumes and binds are looked up by their mount points.
type tree struct {
	root   string
	mounts []container.MountPoint
	ids    userns.Mapping // of the processes in it
	close  func()
}

func (e *Engine) openTree(c *Container) (tree, error) {
	r := c.snapshot()
	if r.runs() {
		ids, err := userns.Of(r.Pid)
		return tree{root: fmt.Sprintf("/proc/%d/root", r.Pid), ids: ids, close: func() {}}, err
	}
	m, err := e.rootfs(&r)
	if err != nil {
		return tree{}, err
	}
	view, err := m.Open()
	if err != nil {
		return tree{}, err
	}
	return tree{root: overlay.Path(view), mounts: r.Mounts, close: func() { view.Close() }}, nil
}

// base is the directory that a container path is to be resolved in, and the
// path within it.
func (t tree) base(name string) (root, rest string) {
	name = path.Join("/", name)
	root, rest = t.root, name
	longest := 0
	for _, p := range t.mounts {
		if p.Source == "" || len(p.Destination) <= longest {
			continue
		}
		if name == p.Destination || strings.HasPrefix(name, p.Destination+"/") {
			root, rest, longest = p.Source, strings.TrimPrefix(name, p.Destination), len(p.Destination)
		}
	}
	if rest == "" {
		rest = "/"
	}
	return root, rest
}

// located is a file in a container: its directory, opened, and its name there.
type located struct {
	dir  *os.Root
	name string
	info fs.FileInfo
}

// locate finds a path for copying. Its directory is resolved; a link at its
// end is followed only if the path ends in a slash, as in Docker.
func (t tree) locate(name string) (located, error) {
	root, rest := t.base(name)
	missing := func(err error) error {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotDir) {
			return errdef.NotFound.Errorf("Could not find the file %s in container", name)
		}
		return err
	}
	rest = path.Clean(rest)
	if rest == "/" || strings.HasSuffix(name, "/") || strings.HasSuffix(name, "/.") {
		dir, err := openRootIn(root, rest)
		if err != nil {
			return located{}, missing(err)
		}
		info, err := dir.Stat(".")
		if err != nil {
			dir.Close()
			return located{}, err
		}
		return located{dir, ".", info}, nil
	}
	dir, err := openRootIn(root, path.Dir(rest))
	if err != nil {
		return located{}, missing(err)
	}
	info, err := dir.Lstat(path.Base(rest))
	if err != nil {
		dir.Close()
		return located{}, missing(err)
	}
	return located{dir, path.Base(rest), info}, nil
}

func (l located) stat(asked string) container.PathStat {
	s := container.PathStat{Name: shownName(asked), Size: l.info.Size(), Mode: l.info.Mode(), Mtime: l.info.ModTime()}
	if l.info.Mode()&fs.ModeSymlink != 0 {
		s.LinkTarget, _ = l.dir.Readlink(l.name)
		if !path.IsAbs(s.LinkTarget) {
			s.LinkTarget = path.Join("/", path.Dir(asked), s.LinkTarget)
		}
	}
	return s
}

// shownName is what clients know a path by. They rename it in tars to what they
// want to have, so it must be Docker's: "." for what is in a directory.
func shownName(asked string) string {
	if asked == "." || strings.HasSuffix(asked, "/.") {
		return "."
	}
	return path.Base(path.Clean("/" + asked))
}

// StatPath tells of a file in a container.
func (e *Engine) StatPath(name, p string) (container.PathStat, error) {
	t, l, err := e.locateIn(name, p)
	if err != nil {
		return container.PathStat{}, err
	}
	defer t.close()
	defer l.dir.Close()
	return l.stat(p), nil
}

func (e *Engine) locateIn(name, p string) (tree, located, error) {
	if p == "" {
		return tree{}, located{}, errdef.Invalid.Errorf("bad parameter: path cannot be empty")
	}
	c, err := e.find(name)
	if err != nil {
		return tree{}, located{}, err
	}
	t, err := e.openTree(c)
	if err != nil {
		return t, located{}, err
	}
	l, err := t.locate(p)
	if err != nil {
		t.close()
		return t, l, fmt.Errorf("%w %s", err, name)
	}
	return t, l, nil
}

// CopyFrom returns a file's description and a function that writes it, and
// all that is in it, as a tar. Call it once, or close.
func (e *Engine) CopyFrom(name, p string) (stat container.PathStat, write func(io.Writer) error, closer func(), err error) {
	t, l, err := e.locateIn(name, p)
	if err != nil {
		return stat, nil, nil, err
	}
	if c, err := e.find(name); err == nil {
		r := c.snapshot()
		e.publish(events.ActionArchivePath, &r, map[string]string{"path": p})
	}
	stat = l.stat(p)
	return stat, func(w io.Writer) error { return tarfs.Write(w, l.dir, l.name, shownName(p), t.ids) }, func() { l.dir.Close(); t.close() }, nil
}

// userIn looks a user up in the files of a container.
func (e *Engine) userIn(root, name string) (spec.User, error) {
	dir, err := os.Open(root)
	if err != nil {
		return spec.User{}, err
	}
	defer dir.Close()
	return spec.LookUp(name, nil, openIn(dir, "etc/passwd"), openIn(dir, "etc/group"))
}

// CopyToOptions are those of PUT archive.
type CopyToOptions struct {
	KeepType bool // noOverwriteDirNonDir
	AsUser   bool // all of it is the container's user's, where it has one (copyUIDGID)
}

// CopyTo unpacks a tar into a directory of a container.
func (e *Engine) CopyTo(name, dir string, tar io.Reader, o CopyToOptions) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	r := c.snapshot()
	if p, readonly := readonlyAt(&r, dir); readonly {
		return errdef.Forbidden.Errorf("container rootfs is marked read-only: %s", p)
	}
	t, err := e.openTree(c)
	if err != nil {
		return err
	}
	defer t.close()
	root, rest := t.base(dir)
	target, err := openRootIn(root, rest)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errdef.NotFound.Errorf("Could not find the file %s in container %s", dir, name)
	case errors.Is(err, errNotDir):
		return errdef.Invalid.Errorf("extraction point is not a directory")
	case err != nil:
		return err
	}
	defer target.Close()
	to := tarfs.Options{KeepType: o.KeepType, IDs: t.ids}
	if o.AsUser && r.Config.User != "" {
		who, err := e.userIn(t.root, r.Config.User)
		if err != nil {
			return err
		}
		to.Owner = &tarfs.Owner{UID: int(who.UID), GID: int(who.GID)}
	}
	if err := t.ids.AsRoot(func() error { return tarfs.Extract(tar, target, to) }); err != nil {
		return err
	}
	e.publish(events.ActionExtractToDir, &r, map[string]string{"path": dir})
	return nil
}

// readonlyAt reports whether dir lies on something mounted read-only.
func readonlyAt(r *record, dir string) (string, bool) {
	dir = path.Join("/", dir)
	for _, p := range r.Mounts {
		if dir == p.Destination || strings.HasPrefix(dir, p.Destination+"/") {
			return p.Destination, !p.RW
		}
	}
	return "/", r.Host.ReadonlyRootfs
}

// ContainerExport returns a function that writes the container's root, without
// its volumes, as a tar.
func (e *Engine) ContainerExport(name string) (func(context.Context, io.Writer) error, error) {
	c, err := e.find(name)
	if err != nil {
		return nil, err
	}
	r := c.snapshot()
	m, err := e.rootfs(&r)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, w io.Writer) error {
		view, err := m.Open()
		if err != nil {
			return err
		}
		defer view.Close()
		root, err := os.OpenRoot(overlay.Path(view))
		if err != nil {
			return err
		}
		defer root.Close()
		e.publish(events.ActionExport, &r, nil)
		return e.images.WriteTar(ctx, root, w)
	}, nil
}

// ContainerChanges lists what the container changed against its image.
func (e *Engine) ContainerChanges(name string) ([]container.FilesystemChange, error) {
	c, err := e.find(name)
	if err != nil {
		return nil, err
	}
	r := c.snapshot()
	m, err := e.rootfs(&r)
	if err != nil {
		return nil, err
	}
	changes, err := e.images.Changes(filepath.Join(e.containerDir(r.ID), "upper"), m)
	if err != nil {
		return nil, err
	}
	kinds := map[store.ChangeKind]container.ChangeType{
		store.Modified: container.ChangeModify, store.Added: container.ChangeAdd, store.Deleted: container.ChangeDelete,
	}
	out := []container.FilesystemChange{}
	for _, ch := range withoutOwn(changes, e.ownTargets(&r)) {
		out = append(out, container.FilesystemChange{Path: ch.Path, Kind: kinds[ch.Kind]})
	}
	return out, nil
}

// withoutOwn leaves out mount points of the engine's own files, and each
// directory in which nothing but these has changed.
func withoutOwn(changes []store.Change, own map[string]bool) []store.Change {
	below := map[string]int{} // changes that a person made, by directory
	for _, ch := range changes {
		if !own[ch.Path] {
			for dir := path.Dir(ch.Path); dir != "/"; dir = path.Dir(dir) {
				below[dir]++
			}
		}
	}
	holdsOwn := map[string]bool{}
	for target := range own {
		holdsOwn[path.Dir(target)] = true
	}
	return slices.DeleteFunc(changes, func(ch store.Change) bool {
		return own[ch.Path] || holdsOwn[ch.Path] && below[ch.Path] == 0 && ch.Kind != store.Deleted
	})
}

// ownTargets are mount points that were made in the container's layer for the
// files and file systems that every container has; nobody wants to see or to
// commit them.
func (e *Engine) ownTargets(r *record) map[string]bool {
	out := map[string]bool{"/dev": true, "/proc": true, "/sys": true}
	for _, m := range e.ownMounts(r, r.ID) {
		out[m.Destination] = true
	}
	return out
}
