package supervisor

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/client"

	"github.com/minke-os/minke/supervisor/plan"
)

// A download is one image on its way.
type download struct {
	step     plan.Step
	cancel   context.CancelFunc
	done     chan struct{}
	progress int // per cent
}

// download starts fetching an image. The loop hears of its end by a poke.
func (s *Supervisor) download(ctx context.Context, st plan.Step) {
	ctx, cancel := context.WithCancel(ctx)
	d := &download{step: st, cancel: cancel, done: make(chan struct{})}
	s.mu.Lock()
	s.fetching[st.Object] = d
	s.mu.Unlock()
	s.log.Info(st.String())
	s.hub.System(fmt.Sprintf("Downloading image '%s'", st.Object))
	go func() {
		defer close(d.done)
		defer cancel()
		err := s.pull(ctx, st.Object, d)
		if err == nil {
			err = s.store.SetImage(st.Object, true)
		}
		if err == nil {
			s.hub.System(fmt.Sprintf("Downloaded image '%s'", st.Object))
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

func (s *Supervisor) pull(ctx context.Context, ref string, d *download) error {
	stream, err := s.cfg.Engine.ImagePull(ctx, ref, client.ImagePullOptions{RegistryAuth: s.registryAuth(ref)})
	if err != nil {
		return fmt.Errorf("download image %s: %w", ref, err)
	}
	defer stream.Close()
	layers := map[string][2]int64{}
	last := time.Time{}
	for msg, err := range stream.JSONMessages(ctx) {
		if err != nil {
			return fmt.Errorf("download image %s: %w", ref, err)
		}
		if msg.Error != nil {
			return fmt.Errorf("download image %s: %s", ref, msg.Error.Message)
		}
		note(layers, msg)
		if now := time.Now(); now.Sub(last) > time.Second/4 {
			last = now
			s.mu.Lock()
			d.progress = percent(layers)
			s.mu.Unlock()
			s.stirred()
		}
	}
	return nil
}

// registryAuth are the device's credentials for a fleet's registry. Docker Hub
// and images without a registry's name get none.
func (s *Supervisor) registryAuth(ref string) string {
	b := s.bootNow()
	domain, _, ok := strings.Cut(ref, "/")
	if b.APIEndpoint == "" || b.DeviceAPIKey == "" || !ok || !strings.ContainsAny(domain, ".:") || strings.HasSuffix(domain, "docker.io") {
		return ""
	}
	auth, err := json.Marshal(registry.AuthConfig{Username: "d_" + s.store.UUID(), Password: b.DeviceAPIKey, ServerAddress: domain})
	if err != nil { // it is all text
		return ""
	}
	return base64.URLEncoding.EncodeToString(auth)
}

// note keeps bytes had and bytes wanted of each layer.
func note(layers map[string][2]int64, m jsonstream.Message) {
	switch {
	case m.ID == "":
	case m.Status == "Downloading" && m.Progress != nil && m.Progress.Total > 0:
		layers[m.ID] = [2]int64{m.Progress.Current, m.Progress.Total}
	case m.Status == "Download complete" || m.Status == "Pull complete" || m.Status == "Already exists":
		total := max(layers[m.ID][1], 1)
		layers[m.ID] = [2]int64{total, total}
	case m.Status == "Pulling fs layer" || m.Status == "Waiting":
		if _, ok := layers[m.ID]; !ok {
			layers[m.ID] = [2]int64{0, 1}
		}
	}
}

func percent(layers map[string][2]int64) int {
	var have, total int64
	for _, l := range layers {
		have, total = have+l[0], total+l[1]
	}
	if total == 0 {
		return 0
	}
	return int(have * 100 / total)
}
