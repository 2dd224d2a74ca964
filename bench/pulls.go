package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/minke-os/minke/bench/pairs"
)

// plainPull is minke, too, of a repository that has no deltas.
const plainPull = "plain pull"

// plainTag is where the same image is without a delta beside it.
func plainTag(tag string) string { return strings.Replace(tag, "/", "/plain/", 1) }

// runPulls compares an update by delta with one by the layers that changed: the
// same image by the same engine, client and registry.
func (r *runner) runPulls(ctx context.Context, out string) (err error) {
	made, err := r.preparePairs(ctx, "docker-registry", "mkfs.ext4", "losetup", "mmdebstrap", "npm")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.remove()) }()
	if err := r.prepare(ctx); err != nil {
		return err
	}
	r.pairs = r.dir // the registry that is kept has no deltas
	err = r.fillRegistry(ctx, func(e *engine) error {
		for _, p := range made {
			if err := errors.Join(e.publish(ctx, p), e.publishDelta(ctx, p)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("fill the registry: %w", err)
	}
	res := newImageResult(r, made)
	res.Engines = []string{"minke", plainPull}
	for n := range r.rounds {
		began := time.Now()
		for _, way := range res.Engines {
			if err := r.pullTurn(ctx, fmt.Sprintf("%s-%d", way, n), way, made, res); err != nil {
				return fmt.Errorf("%s: %w", way, err)
			}
		}
		fmt.Fprintf(os.Stderr, "bench: round %d of %d took %v\n", n+1, r.rounds, time.Since(began).Round(time.Second))
	}
	if err := keep(out, res.When, "-pulls", res); err != nil {
		return err
	}
	var b bytes.Buffer
	res.figures(&b)
	_, err = os.Stdout.Write(b.Bytes())
	return err
}

// publishDelta pushes the delta of a pair, and the second version to where it has
// none.
func (e *engine) publishDelta(ctx context.Context, p pairs.Pair) error {
	if _, err := e.execute(ctx, e.own, []string{"delta", "create", "--push", p.OldTag, p.NewTag}); err != nil {
		return err
	}
	if _, err := e.command(ctx, "tag", p.NewTag, plainTag(p.NewTag)); err != nil {
		return err
	}
	_, err := e.command(ctx, "push", plainTag(p.NewTag))
	return err
}

// pullTurn pulls all first versions onto a new disk, then the second ones in one
// of the ways.
func (r *runner) pullTurn(ctx context.Context, dir, way string, made []pairs.Pair, res *imageResult) (err error) {
	e, err := r.startOnDisk(ctx, "minke", filepath.Join(r.dir, dir))
	if e != nil {
		defer func() { err = errors.Join(err, e.shut()) }()
	}
	if err != nil {
		return err
	}
	for _, p := range made {
		if _, err := e.command(ctx, e.pulling(p.OldTag)...); err != nil {
			return err
		}
	}
	for _, p := range made {
		tag := p.NewTag
		if way == plainPull {
			tag = plainTag(tag)
		}
		s, err := e.measureImage(ctx, e.pulling(tag))
		if err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
		res.add(p.Name, way, s)
	}
	return nil
}
