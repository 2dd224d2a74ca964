package build

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"strings"
	"syscall"

	"github.com/minke-os/minke/engine/build/dockerfile"
	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/errdef"
)

// workdir is WORKDIR, which makes the directory if it is missing.
func (st *stage) workdir(ctx context.Context, c *dockerfile.Workdir) error {
	if c.Path == "" {
		return errdef.Invalid.Errorf("cannot normalize nothing")
	}
	st.config.Config.WorkingDir = joined(st.config.Config.WorkingDir, c.Path)
	createdBy := strings.Join(shellOf(st.config.Config), " ") + " #(nop) WORKDIR " + st.config.Config.WorkingDir
	if st.hit(ctx, createdBy) {
		return nil
	}
	l, err := st.directoryLayer(ctx, st.config.Config.WorkingDir)
	if err != nil {
		return err
	}
	st.cache = nil
	return st.commit(ctx, createdBy, l)
}

// directoryLayer is a layer with a directory, nil if the image has it.
func (st *stage) directoryLayer(ctx context.Context, dir string) (*store.Layer, error) {
	view, err := st.of(st.chain)
	if err != nil {
		return nil, err
	}
	target, err := view.resolve(dir)
	if err != nil {
		return nil, err
	}
	cp := &copying{stage: st, view: view, created: map[string]bool{}}
	switch fi, err := view.root.Lstat(dot(target)); {
	case err == nil && fi.IsDir():
		return nil, nil
	case err == nil, errors.Is(err, syscall.ENOTDIR):
		return nil, errdef.Invalid.Errorf("Cannot mkdir: %s is not a directory", dir)
	}
	l, err := st.Store.AddPacked(ctx, st.chain, func(w io.Writer) error {
		tw := tar.NewWriter(w)
		return errors.Join(cp.parents(tw, target), tw.Close())
	})
	return &l, err
}
