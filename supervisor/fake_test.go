package supervisor_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"github.com/minke-os/minke/supervisor/client"
)

// A fake is an engine in memory. It answers as Docker does, as far as the
// supervisor looks, and counts what changes it.
type fake struct {
	mu         sync.Mutex // guards the fields below
	n          int
	writes     int
	containers map[string]*container.InspectResponse
	networks   map[string]network.Summary
	volumes    map[string]volume.Volume
	images     map[string]string
	registry   map[string]bool // images that can be pulled
	pulls      []string
	deltas     map[string]bool      // images that are deltas which this engine does not know
	room       func() error         // that a pull finds
	progress   []jsonstream.Message // of a pull
	root       string               // where it keeps images, "" if nobody may know
	crashing   map[string]bool      // images whose programs keep ending
	sickly     map[string]bool      // images whose programs never become healthy
	listeners  []chan events.Message
}

func newFake(images ...string) *fake {
	f := &fake{containers: map[string]*container.InspectResponse{}, networks: map[string]network.Summary{}, volumes: map[string]volume.Volume{}, images: map[string]string{},
		registry: map[string]bool{}, crashing: map[string]bool{}, sickly: map[string]bool{}}
	for _, ref := range images {
		f.images[ref] = "sha256:" + strings.Repeat(fmt.Sprintf("%02x", len(f.images)+1), 32)
	}
	return f
}

func (f *fake) Writes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.writes
}

func (f *fake) changedLocked(kind events.Type, action events.Action) {
	f.writes++
	for _, l := range f.listeners {
		select {
		case l <- events.Message{Type: kind, Action: action}:
		default:
		}
	}
}

func notFound(kind, name string) error {
	return fmt.Errorf("no such %s: %s: %w", kind, name, cerrdefs.ErrNotFound)
}

func (f *fake) Events(ctx context.Context, _ client.EventsListOptions) client.EventsResult {
	f.mu.Lock()
	defer f.mu.Unlock()
	ch := make(chan events.Message, 16)
	f.listeners = append(f.listeners, ch)
	return client.EventsResult{Messages: ch, Err: make(chan error)}
}

func (f *fake) ContainerList(_ context.Context, o client.ContainerListOptions) (client.ContainerListResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out client.ContainerListResult
	for _, c := range f.containers {
		match := true
		for label := range o.Filters["label"] {
			_, has := c.Config.Labels[label]
			match = match && has
		}
		if match {
			out.Items = append(out.Items, container.Summary{ID: c.ID, Mounts: c.Mounts})
		}
	}
	return out, nil
}

func (f *fake) ContainerInspect(_ context.Context, id string, _ client.ContainerInspectOptions) (client.ContainerInspectResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, ok := f.containers[id]
	if !ok {
		return client.ContainerInspectResult{}, notFound("container", id)
	}
	copied := *c
	state := *c.State
	settings := *c.NetworkSettings
	settings.Networks = maps.Clone(settings.Networks)
	copied.State, copied.NetworkSettings = &state, &settings
	return client.ContainerInspectResult{Container: copied}, nil
}

func (f *fake) ContainerCreate(_ context.Context, o client.ContainerCreateOptions) (client.ContainerCreateResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.containers {
		if c.Name == "/"+o.Name {
			return client.ContainerCreateResult{}, fmt.Errorf("the name %s is in use: %w", o.Name, cerrdefs.ErrConflict)
		}
	}
	f.n++
	id := fmt.Sprintf("%064x", f.n)
	c := &container.InspectResponse{
		ID: id, Name: "/" + o.Name, Image: o.Config.Image, Config: o.Config, HostConfig: o.HostConfig,
		Created: time.Now().Format(time.RFC3339Nano),
		State:   &container.State{Status: container.StateCreated}, NetworkSettings: &container.NetworkSettings{Networks: map[string]*network.EndpointSettings{}},
	}
	if o.NetworkingConfig != nil {
		maps.Copy(c.NetworkSettings.Networks, o.NetworkingConfig.EndpointsConfig)
	}
	for _, b := range o.HostConfig.Binds {
		if name, _, _ := strings.Cut(b, ":"); !strings.HasPrefix(name, "/") {
			c.Mounts = append(c.Mounts, container.MountPoint{Type: mount.TypeVolume, Name: name})
		}
	}
	f.containers[id] = c
	f.changedLocked("container", "create")
	return client.ContainerCreateResult{ID: id}, nil
}

// change does something to a container.
func (f *fake) change(id string, action events.Action, do func(*container.InspectResponse)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, ok := f.containers[id]
	if !ok {
		return notFound("container", id)
	}
	do(c)
	f.changedLocked("container", action)
	return nil
}

func (f *fake) ContainerStart(_ context.Context, id string, _ client.ContainerStartOptions) (client.ContainerStartResult, error) {
	return client.ContainerStartResult{}, f.change(id, "start", func(c *container.InspectResponse) {
		c.State = &container.State{Status: container.StateRunning, StartedAt: time.Now().Format(time.RFC3339Nano)}
		if c.Config.Healthcheck != nil {
			c.State.Health = &container.Health{Status: container.Healthy}
		}
		switch {
		case f.isLocked(f.crashing, c):
			c.State = &container.State{Status: container.StateRestarting, ExitCode: 3}
			c.RestartCount = 5
		case f.isLocked(f.sickly, c):
			c.State.Health = &container.Health{Status: container.Starting}
		}
	})
}

// isLocked reports whether a container's image is one of a kind.
func (f *fake) isLocked(kind map[string]bool, c *container.InspectResponse) bool {
	for ref := range kind {
		if ref == c.Config.Image || f.images[ref] == c.Config.Image {
			return true
		}
	}
	return false
}

func (f *fake) ContainerStop(_ context.Context, id string, _ client.ContainerStopOptions) (client.ContainerStopResult, error) {
	return client.ContainerStopResult{}, f.change(id, "stop", func(c *container.InspectResponse) { c.State.Status = container.StateExited })
}

func (f *fake) ContainerRename(_ context.Context, id string, o client.ContainerRenameOptions) (client.ContainerRenameResult, error) {
	return client.ContainerRenameResult{}, f.change(id, "rename", func(c *container.InspectResponse) { c.Name = "/" + o.NewName })
}

func (f *fake) ContainerUpdate(_ context.Context, id string, o client.ContainerUpdateOptions) (client.ContainerUpdateResult, error) {
	return client.ContainerUpdateResult{}, f.change(id, "update", func(c *container.InspectResponse) { c.HostConfig.RestartPolicy = *o.RestartPolicy })
}

func (f *fake) ContainerRemove(_ context.Context, id string, _ client.ContainerRemoveOptions) (client.ContainerRemoveResult, error) {
	err := f.change(id, "destroy", func(*container.InspectResponse) { delete(f.containers, id) })
	return client.ContainerRemoveResult{}, err
}

func (f *fake) NetworkList(context.Context, client.NetworkListOptions) (client.NetworkListResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return client.NetworkListResult{Items: slices.Collect(maps.Values(f.networks))}, nil
}

func (f *fake) NetworkCreate(_ context.Context, name string, o client.NetworkCreateOptions) (client.NetworkCreateResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := network.Summary{Network: network.Network{Name: name, ID: name, Labels: o.Labels, Options: o.Options, Driver: o.Driver, Internal: o.Internal}}
	if o.IPAM != nil {
		n.IPAM = *o.IPAM
	}
	f.networks[name] = n
	f.changedLocked("network", "create")
	return client.NetworkCreateResult{ID: name}, nil
}

func (f *fake) NetworkRemove(_ context.Context, name string, _ client.NetworkRemoveOptions) (client.NetworkRemoveResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.networks, name)
	f.changedLocked("network", "destroy")
	return client.NetworkRemoveResult{}, nil
}

func (f *fake) NetworkConnect(_ context.Context, name string, o client.NetworkConnectOptions) (client.NetworkConnectResult, error) {
	return client.NetworkConnectResult{}, f.change(o.Container, "update", func(c *container.InspectResponse) { c.NetworkSettings.Networks[name] = o.EndpointConfig })
}

func (f *fake) VolumeList(context.Context, client.VolumeListOptions) (client.VolumeListResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return client.VolumeListResult{Items: slices.Collect(maps.Values(f.volumes))}, nil
}

func (f *fake) VolumeCreate(_ context.Context, o client.VolumeCreateOptions) (client.VolumeCreateResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.volumes[o.Name] = volume.Volume{Name: o.Name, Driver: o.Driver, Options: o.DriverOpts, Labels: o.Labels, CreatedAt: fmt.Sprint(f.writes)}
	f.changedLocked("volume", "create")
	return client.VolumeCreateResult{Volume: f.volumes[o.Name]}, nil
}

func (f *fake) VolumeRemove(_ context.Context, name string, _ client.VolumeRemoveOptions) (client.VolumeRemoveResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.volumes, name)
	f.changedLocked("volume", "destroy")
	return client.VolumeRemoveResult{}, nil
}

func (f *fake) ImageInspect(_ context.Context, ref string) (client.ImageInspectResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id, ok := f.images[ref]
	if !ok {
		return client.ImageInspectResult{}, notFound("image", ref)
	}
	res := image.InspectResponse{ID: id, Config: &dockerspec.DockerOCIImageConfig{}}
	if f.deltas[ref] {
		res.Config.Labels = map[string]string{"io.resin.delta.base": "sha256:01"}
	}
	return client.ImageInspectResult{InspectResponse: res}, nil
}

func (f *fake) ImageList(context.Context, client.ImageListOptions) (client.ImageListResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out client.ImageListResult
	for _, id := range f.images {
		out.Items = append(out.Items, image.Summary{ID: id})
	}
	return out, nil
}

func (f *fake) ImagePull(_ context.Context, ref string, o client.ImagePullOptions) (client.ImagePullResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.registry[ref] {
		return nil, fmt.Errorf("no registry has %s: %w", ref, cerrdefs.ErrNotFound)
	}
	if f.room != nil {
		if err := f.room(); err != nil {
			return nil, err
		}
	}
	auth, _ := base64.URLEncoding.DecodeString(o.RegistryAuth)
	f.pulls = append(f.pulls, ref+" "+string(auth))
	return pulled{io.NopCloser(strings.NewReader("")), f, ref}, nil
}

// pulled is a pull, which ends when its messages have been read.
type pulled struct {
	io.ReadCloser
	f   *fake
	ref string
}

func (pulled) Wait(context.Context) error { return nil }

func (p pulled) JSONMessages(context.Context) iter.Seq2[jsonstream.Message, error] {
	return func(yield func(jsonstream.Message, error) bool) {
		f := p.f
		f.mu.Lock()
		list := f.progress
		f.mu.Unlock()
		for _, m := range list {
			if !yield(m, nil) {
				return
			}
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.n++
		f.images[p.ref] = fmt.Sprintf("sha256:%064x", f.n)
		f.changedLocked("image", "pull")
	}
}

func (f *fake) Info(context.Context, client.InfoOptions) (client.SystemInfoResult, error) {
	return client.SystemInfoResult{Info: system.Info{DockerRootDir: f.root}}, nil
}

func (f *fake) ContainerLogs(_ context.Context, id string, o client.ContainerLogsOptions) (client.ContainerLogsResult, error) {
	line := "2026-01-02T03:04:05.678000000Z hello\n"
	if o.Follow {
		line = ""
	}
	frame := append([]byte{1, 0, 0, 0, 0, 0, 0, byte(len(line))}, line...)
	return io.NopCloser(strings.NewReader(string(frame))), nil
}

func (f *fake) has(t *testing.T, ref string) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.images[ref] = "sha256:" + strings.Repeat("ff", 32)
	f.changedLocked("image", "tag")
}

func (f *fake) ImageRemove(_ context.Context, ref string, _ client.ImageRemoveOptions) (client.ImageRemoveResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, id := range f.images {
		if id == ref {
			ref = name
		}
	}
	if _, ok := f.images[ref]; !ok {
		return client.ImageRemoveResult{}, notFound("image", ref)
	}
	for _, c := range f.containers {
		if c.Config.Image == ref || c.Config.Image == f.images[ref] {
			return client.ImageRemoveResult{}, fmt.Errorf("image %s is in use: %w", ref, cerrdefs.ErrConflict)
		}
	}
	delete(f.images, ref)
	f.changedLocked("image", "delete")
	return client.ImageRemoveResult{}, nil
}
