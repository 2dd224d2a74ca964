package supervisor

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/registry"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/supervisor/client"
	"github.com/minke-os/minke/supervisor/plan"
)

// A download is one image on its way.
type download struct {
	step     plan.Step
	quiet    bool // give way to what runs
	cancel   context.CancelFunc
	done     chan struct{}
	progress int // per cent
}

// download starts fetching an image. The loop hears of its end by a poke.
func (s *Supervisor) download(ctx context.Context, cur plan.Current, st plan.Step) {
	ctx, cancel := context.WithCancel(ctx)
	d := &download{
		step: st, cancel: cancel, done: make(chan struct{}),
		quiet: slices.ContainsFunc(cur.Containers, plan.Container.Runs),
	}
	s.mu.Lock()
	wanted := wantsImage(s.want, st.Object) // a newer target may have come, which ended the downloads that there were
	if wanted {
		s.fetching[st.Object] = d
	}
	s.mu.Unlock()
	if !wanted {
		cancel()
		return
	}
	s.log.Info(st.String())
	go func() {
		defer close(d.done)
		defer cancel()
		err := s.fetch(ctx, cur, d)
		if err == nil {
			s.hub.System(fmt.Sprintf("Downloaded image '%s'", st.Object))
		}
		if isFull(err) {
			want, _ := s.wanted()
			s.removeImages(ctx, want)
		}
		s.outcome(ctx, st, err)
		s.mu.Lock()
		delete(s.fetching, st.Object)
		s.mu.Unlock()
		s.poke()
	}()
}

// stopDownloads ends all downloads and waits for them.
func (s *Supervisor) stopDownloads() {
	s.mu.Lock()
	var all []*download
	for _, d := range s.fetching {
		all = append(all, d)
	}
	s.mu.Unlock()
	for _, d := range all {
		d.cancel()
		<-d.done
	}
}

// fetch brings an image, as a delta where that is wanted and helps.
func (s *Supervisor) fetch(ctx context.Context, cur plan.Current, d *download) error {
	ref := d.step.Object
	name := s.fetchDelta(ctx, cur, d)
	if name == "" {
		name = ref
		s.hub.System(fmt.Sprintf("Downloading image '%s'", ref))
		if err := s.pull(ctx, ref, s.registryAuth(ref), d); err != nil {
			return fmt.Errorf("download image %s: %w", ref, err)
		}
	}
	return s.store.SetImage(ref, name)
}

// isFull reports whether an engine has no room. That comes as text: the Docker
// API has no other word for it.
func isFull(err error) bool {
	return err != nil && strings.Contains(err.Error(), unix.ENOSPC.Error())
}

// pull has the engine pull an image. Beside what runs, one comes at a time.
func (s *Supervisor) pull(ctx context.Context, name string, auth registry.AuthConfig, d *download) error {
	from := Puller(s.cfg.Engine)
	if d.quiet {
		from = s.cfg.Background
		select {
		case s.turn <- struct{}{}:
			defer func() { <-s.turn }()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	room := s.imageDisk(ctx)
	s.mu.Lock()
	s.images = room
	s.mu.Unlock()
	if err := room.check(0); err != nil {
		return err
	}
	stream, err := from.ImagePull(ctx, name, client.ImagePullOptions{RegistryAuth: encoded(auth)})
	if err != nil {
		return err
	}
	defer stream.Close()
	all := layers{}
	last := time.Time{}
	for msg, err := range stream.JSONMessages(ctx) {
		if err != nil {
			return err
		}
		if msg.Error != nil {
			return errors.New(msg.Error.Message)
		}
		all.note(msg)
		if err := room.check(all.needs()); err != nil {
			return err // and the pull ends
		}
		if now := time.Now(); now.Sub(last) > time.Second/4 {
			last = now
			s.mu.Lock()
			d.progress = all.percent()
			s.mu.Unlock()
			s.stirred()
		}
	}
	return nil
}

// registryOf is the host of an image's registry, "" of an image of Docker Hub
// or without a registry's name.
func registryOf(ref string) string {
	host, _, ok := strings.Cut(ref, "/")
	if !ok || !strings.ContainsAny(host, ".:") || strings.HasSuffix(host, "docker.io") {
		return ""
	}
	return host
}

// registryAuth are the device's credentials for a fleet's registry; other
// images get none.
func (s *Supervisor) registryAuth(ref string) registry.AuthConfig {
	b, host := s.bootNow(), registryOf(ref)
	if b.APIEndpoint == "" || b.DeviceAPIKey == "" || host == "" {
		return registry.AuthConfig{}
	}
	return registry.AuthConfig{Username: "d_" + s.store.UUID(), Password: b.DeviceAPIKey, ServerAddress: host}
}

// encoded is how a request carries credentials; none are "".
func encoded(auth registry.AuthConfig) string {
	if auth == (registry.AuthConfig{}) {
		return ""
	}
	text, err := json.Marshal(auth)
	if err != nil { // it is all text
		return ""
	}
	return base64.URLEncoding.EncodeToString(text)
}
