package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/engine/build"
	"github.com/minke-os/minke/engine/build/dockerfile"
	"github.com/minke-os/minke/engine/internal/buildcache"
	"github.com/minke-os/minke/internal/order"
	"github.com/minke-os/minke/internal/overlay"
)

// extras are what a RUN instruction has that no record may have: secrets, and
// mounts that only this process knows how to give back.
type extras struct {
	mounts []specs.Mount
	env    []string
}

func (c *Container) extrasOf() extras {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.extras
}

func withEnv(c *container.Config, env []string) *container.Config {
	if len(env) == 0 {
		return c
	}
	with := *c
	with.Env = slices.Concat(c.Env, env)
	return &with
}

// openBuilds makes ready what builds need, and clears what the last process's
// have left.
func (e *Engine) openBuilds() (err error) {
	if err := os.RemoveAll(e.secretsDir("")); err != nil {
		return err
	}
	if e.buildCache, err = buildcache.Open(filepath.Join(e.cfg.DataRoot, "buildcache")); err != nil {
		return fmt.Errorf("open build cache: %w", err)
	}
	return nil
}

// secretsDir is where the secrets of a RUN instruction lie for its container
// to bind. The exec root is a tmpfs.
func (e *Engine) secretsDir(container string) string {
	return filepath.Join(e.cfg.ExecRoot, "secrets", container)
}

// addBuildMounts gives a container the mounts of RUN --mount until done.
func (e *Engine) addBuildMounts(ctx context.Context, r *record, mounts []build.RunMount) (done func(), err error) {
	b := buildMounts{Engine: e, r: r}
	for _, m := range mounts {
		if err := b.add(ctx, m); err != nil {
			b.done()
			return nil, fmt.Errorf("RUN --mount=type=%s: %w", m.Type, err)
		}
	}
	c, err := e.find(r.ID)
	if err != nil {
		b.done()
		return nil, err
	}
	c.mu.Lock()
	c.extras = b.extras
	c.mu.Unlock()
	return b.done, nil
}

type buildMounts struct {
	*Engine
	r *record
	extras
	release []func()
}

func (b *buildMounts) done() {
	for _, f := range b.release {
		f()
	}
}

func (b *buildMounts) add(ctx context.Context, m build.RunMount) error {
	switch m.Type {
	case dockerfile.Bind:
		return b.bind(m)
	case dockerfile.Cache:
		return b.cache(ctx, m)
	case dockerfile.Secret:
		return b.secret(m)
	}
	s := specs.Mount{Destination: m.Target, Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", access(m), "mode=1777"}}
	if m.Size > 0 {
		s.Options = append(s.Options, "size="+strconv.FormatInt(m.Size, 10))
	}
	b.mounts = append(b.mounts, s)
	return nil
}

func access(m build.RunMount) string {
	if m.ReadOnly {
		return "ro"
	}
	return "rw"
}

// bind shows files of a stack of layers. What is written to them goes into the
// container's directory, and with it.
func (b *buildMounts) bind(m build.RunMount) error {
	release, err := b.keepLayers(m.Layers)
	if err != nil {
		return err
	}
	b.release = append(b.release, release)
	view, err := b.images.Mount(m.Layers)
	if err != nil {
		return err
	}
	if !m.ReadOnly {
		dir, err := os.MkdirTemp(b.containerDir(b.r.ID), "bind-")
		if err != nil {
			return err
		}
		view.Upper, view.Work = filepath.Join(dir, "upper"), filepath.Join(dir, "work")
		if err := errors.Join(os.Mkdir(view.Upper, 0o755), os.Mkdir(view.Work, 0o755)); err != nil {
			return err
		}
	}
	s := specs.Mount{Destination: m.Target, Type: "overlay", Source: "build", Options: append(view.Options(), access(m))}
	if m.Path != "/" {
		s.Options = append(s.Options, "x-subpath="+m.Path)
	}
	b.mounts = append(b.mounts, s)
	return nil
}

func (b *buildMounts) cache(ctx context.Context, m build.RunMount) error {
	want := buildcache.Want{ID: m.CacheID, Sharing: buildcache.Sharing(m.Sharing), Mode: m.Mode, UID: m.UID, GID: m.GID}
	if m.Layers != "" {
		want.Fill = func(dir string) error {
			view, err := b.imageView(&record{Layer: m.Layers})
			if err != nil {
				return err
			}
			defer view.Close()
			return copyTree(overlay.Path(view), m.Path, dir)
		}
	}
	dir, release, err := b.buildCache.Use(ctx, want)
	if err != nil {
		return err
	}
	b.release = append(b.release, release)
	b.mounts = append(b.mounts, specs.Mount{Destination: m.Target, Type: "bind", Source: dir, Options: []string{"rbind", "rprivate", access(m)}})
	return nil
}

func (b *buildMounts) secret(m build.RunMount) error {
	if m.Env != "" {
		b.env = append(b.env, m.Env+"="+string(m.Secret))
	}
	if m.Target == "" {
		return nil
	}
	dir := b.secretsDir(b.r.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	b.release = append(b.release, func() { os.RemoveAll(dir) })
	file := filepath.Join(dir, strconv.Itoa(len(b.mounts)))
	if err := os.WriteFile(file, m.Secret, 0o400); err != nil {
		return err
	}
	if err := errors.Join(os.Chown(file, m.UID, m.GID), os.Chmod(file, m.Mode)); err != nil {
		return err
	}
	b.mounts = append(b.mounts, specs.Mount{Destination: m.Target, Type: "bind", Source: file, Options: []string{"bind", "rprivate", "ro", "nosuid", "nodev", "noexec"}})
	return nil
}

// A stub is a mount point that the image does not have.
type stub struct {
	path   string    // below the root
	parent time.Time // when the image changed its directory, zero if that is missing, too
}

// mountStubs finds, deepest first, what the runtime will make to mount on.
func (e *Engine) mountStubs(r *record, mounts []build.RunMount) (stubs []stub, err error) {
	if len(mounts) == 0 {
		return nil, nil
	}
	view, err := e.imageView(r)
	if err != nil {
		return nil, err
	}
	defer view.Close()
	root := overlay.Path(view)
	for _, m := range mounts {
		full, err := securejoin.SecureJoin(root, m.Target)
		if err != nil {
			return nil, err
		}
		for at := full; len(at) > len(root); at = path.Dir(at) {
			if _, err := os.Lstat(at); !errors.Is(err, fs.ErrNotExist) {
				break
			}
			s := stub{path: strings.TrimPrefix(at, root)}
			if fi, err := os.Lstat(path.Dir(at)); err == nil {
				s.parent = fi.ModTime()
			}
			stubs = append(stubs, s)
		}
	}
	order.By(stubs, func(a, b stub) int { return strings.Count(b.path, "/") - strings.Count(a.path, "/") })
	return slices.Compact(stubs), nil
}

// removeStubs takes mount points that are still empty out of a container's
// changes, and lets their directories look untouched.
func (e *Engine) removeStubs(r *record, stubs []stub) error {
	upper, err := os.OpenRoot(filepath.Join(e.containerDir(r.ID), "upper"))
	if err != nil {
		return err
	}
	defer upper.Close()
	for _, s := range stubs {
		name := strings.TrimPrefix(s.path, "/")
		fi, err := upper.Lstat(name)
		if err != nil || !fi.IsDir() && (fi.Size() > 0 || !fi.Mode().IsRegular()) {
			continue
		}
		if upper.Remove(name) == nil && !s.parent.IsZero() { // it is not empty: then it is the command's
			if err := upper.Chtimes(path.Dir(name), s.parent, s.parent); err != nil {
				return err
			}
		}
	}
	return nil
}
