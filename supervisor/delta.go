package supervisor

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/registry"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/supervisor/client"
	"github.com/minke-os/minke/supervisor/cloud"
	"github.com/minke-os/minke/supervisor/plan"
)

// deltaSettings are what the device's variables say of deltas.
type deltaSettings struct {
	wanted   bool
	request  time.Duration // the server may take to answer
	apply    time.Duration // the engine may take to pull one; 0 for ever
	retries  int           // while the server makes one or cannot be reached
	interval time.Duration // between them
}

func (s *Supervisor) deltaSettings() deltaSettings {
	config := s.Target().Config
	ms := func(name string) time.Duration { return time.Duration(numeric(config, name, 0)) * time.Millisecond }
	return deltaSettings{
		wanted:  flag(config, "SUPERVISOR_DELTA"),
		request: ms("SUPERVISOR_DELTA_REQUEST_TIMEOUT"), apply: ms("SUPERVISOR_DELTA_APPLY_TIMEOUT"),
		retries: numeric(config, "SUPERVISOR_DELTA_RETRY_COUNT", 0), interval: ms("SUPERVISOR_DELTA_RETRY_INTERVAL"),
	}
}

// balenaDeltas makes deltas for devices of balenaCloud.
const balenaDeltas = "https://delta.balena-cloud.com"

// deltaEndpoint is the server that makes deltas, "" for none. Another fleet
// server's devices must name theirs: balena's is not to get their keys.
func (b boot) deltaEndpoint() string {
	u, err := url.Parse(b.APIEndpoint)
	if b.DeltaEndpoint == "" && err == nil && strings.HasSuffix(u.Hostname(), ".balena-cloud.com") {
		return balenaDeltas
	}
	return b.DeltaEndpoint
}

// fetchDelta brings an image as a delta from the one that its service has, and
// returns the name by which the engine then has it. It is "" when the whole
// image must be pulled: deltas are not wanted, or there is none that helps,
// which people are told.
func (s *Supervisor) fetchDelta(ctx context.Context, cur plan.Current, d *download) (name string) {
	set, dest := s.deltaSettings(), d.step.Object
	if !set.wanted || s.link == nil || registryOf(dest) == "" {
		return ""
	}
	src := s.deltaSource(ctx, cur, d.step)
	if src == "" {
		return ""
	}
	s.hub.System(fmt.Sprintf("Downloading delta for image '%s'", dest))
	delta, err := s.awaitDelta(ctx, src, dest, set)
	if err == nil {
		err = s.pullDelta(ctx, delta, set.apply, d)
	}
	if err != nil {
		if ctx.Err() == nil {
			s.log.Warn("a delta does not help, the whole image is downloaded", "image", dest, "err", err)
			s.hub.System(fmt.Sprintf("Failed to download delta for image '%s' due to '%v'", dest, err))
		}
		return ""
	}
	return delta.Name
}

// deltaSource is the reference of the image that a service has now, if we
// pulled it: the delta server knows no others.
func (s *Supervisor) deltaSource(ctx context.Context, cur plan.Current, st plan.Step) string {
	for _, c := range slices.Backward(cur.Containers) {
		if c.App != st.App || c.Service != st.Service {
			continue
		}
		for _, ref := range s.store.Images() {
			img, err := s.cfg.Engine.ImageInspect(ctx, s.store.EngineName(ref))
			if err == nil && img.ID == c.ImageID && registryOf(ref) != "" {
				return ref
			}
		}
	}
	return ""
}

// awaitDelta asks for a delta until there is one, there will be none, or it
// has been asked for often enough.
func (s *Supervisor) awaitDelta(ctx context.Context, src, dest string, set deltaSettings) (cloud.Delta, error) {
	for tries := 0; ; tries++ {
		delta, err := s.link.Delta(ctx, src, dest, set.request)
		if err == nil || ctx.Err() != nil || errdef.Is(err, errdef.NotFound) || tries >= set.retries {
			return delta, err
		}
		s.log.Info("ask for a delta", "image", dest, "err", err, "retry", set.interval)
		if tries == 0 && errdef.Is(err, errdef.Busy) {
			s.hub.System("Delta still processing remotely. Will retry...")
		}
		select {
		case <-time.After(set.interval):
		case <-ctx.Done():
		}
	}
}

// deltaPulls is how often a delta is pulled before the whole image is.
const deltaPulls = 3

func (s *Supervisor) pullDelta(ctx context.Context, delta cloud.Delta, limit time.Duration, d *download) (err error) {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	auth := registry.AuthConfig{RegistryToken: delta.Token}
	for range deltaPulls {
		if err = s.pull(ctx, delta.Name, auth, d); err == nil || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return err
	}
	return s.applied(ctx, delta.Name)
}

// applied checks that the engine has made the image of the delta. Docker knows
// no deltas and keeps them as they are, as images that cannot run.
func (s *Supervisor) applied(ctx context.Context, name string) error {
	img, err := s.cfg.Engine.ImageInspect(ctx, name)
	if err != nil {
		return err
	}
	if img.Config == nil || img.Config.Labels["io.resin.delta.base"] == "" {
		return nil
	}
	if _, err := s.cfg.Engine.ImageRemove(ctx, name, client.ImageRemoveOptions{PruneChildren: true}); err != nil {
		return err
	}
	return errdef.Unsupported.Errorf("this engine knows no deltas")
}
