package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"

	"github.com/minke-os/minke/engine/archive"
	"github.com/minke-os/minke/engine/build"
	"github.com/minke-os/minke/engine/registry"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// RegistryAuths are credentials by the domain of references: docker.io.
type RegistryAuths map[string]registry.Credentials

// ImageBuild makes an image from a build context, see package build. Base
// images that are not here are pulled.
func (e *Engine) ImageBuild(ctx context.Context, o build.Options, auths RegistryAuths, contextTar io.Reader, out build.Output) (oci.ImageID, error) {
	if o.Platform == (oci.Platform{}) {
		o.Platform = oci.Host()
	}
	id, err := build.Build(ctx, build.Deps{Store: e.images, Runner: buildRunner{e}, Pull: e.pullBase(auths)}, o, contextTar, out)
	if err != nil {
		return "", err
	}
	for _, ref := range o.Tags {
		e.publishImage(events.ActionTag, string(id), ref.Familiar())
	}
	return id, nil
}

// buildRunner runs RUN instructions in containers of the engine.
type buildRunner struct{ e *Engine }

// Run implements build.Runner.
func (b buildRunner) Run(ctx context.Context, s build.RunSpec) (result build.RunResult, err error) {
	host, err := buildHost(s.Host)
	if err != nil {
		return result, err
	}
	if err := b.e.checkHostConfig(host); err != nil {
		return result, err
	}
	release, err := b.e.keepLayers(s.Parent)
	if err != nil {
		return result, err
	}
	cfg := ContainerConfig(s.Config)
	cfg.Cmd, cfg.Healthcheck = s.Cmd, nil
	r := record{Image: s.Image, Layer: s.Parent, Path: s.Cmd[0], Args: s.Cmd[1:], Config: cfg, Host: host, Build: true}
	if r.Networks, err = b.e.wantedNetworks(host, nil); err == nil {
		err = b.e.create(&r, "", release)
	}
	if err != nil {
		release()
		return result, err
	}
	defer func() {
		rerr := b.e.ContainerRemove(context.WithoutCancel(ctx), r.ID, RemoveOptions{Force: true, Volumes: true})
		if err == nil && !errdef.Is(rerr, errdef.NotFound) {
			err = rerr
		}
	}()
	s.Started(r.ID)
	done, err := b.e.addBuildMounts(ctx, &r, s.Mounts)
	if err != nil {
		return result, err
	}
	defer done()
	b.e.at("build-mounts")
	stubs, err := b.e.mountStubs(&r, s.Mounts)
	if err != nil {
		return result, err
	}
	if result.ExitCode, err = b.e.runToEnd(ctx, r.ID, s.Stdout, s.Stderr); err != nil || result.ExitCode != 0 {
		return result, err
	}
	c, err := b.e.find(r.ID)
	if err != nil {
		return result, fmt.Errorf("the build was cancelled: %w", err)
	}
	r = c.snapshot()
	if err := b.e.removeStubs(&r, stubs); err != nil {
		return result, err
	}
	b.e.at("build-commit")
	result.Layer, err = b.e.commitLayer(ctx, &r)
	return result, err
}

// runToEnd runs a created container and copies its output.
func (e *Engine) runToEnd(ctx context.Context, id string, stdout, stderr io.Writer) (code int, err error) {
	a, err := e.Attach(ctx, id, AttachOptions{Stdout: true, Stderr: true, Stream: true})
	if err != nil {
		return 0, err
	}
	wait, err := e.ContainerWait(id, container.WaitConditionNextExit)
	if err == nil {
		err = e.ContainerStart(ctx, id)
	}
	if err != nil {
		a.Close()
		return 0, err
	}
	if err := a.Run(ctx, nil, stdout, stderr); err != nil {
		return 0, err
	}
	return wait(ctx)
}

func buildHost(h build.HostConfig) (*container.HostConfig, error) {
	out := &container.HostConfig{
		Runtime:     runtimeName, // others cannot mount a part of an overlay
		NetworkMode: container.NetworkMode(h.NetworkMode), ShmSize: h.ShmSize, ExtraHosts: h.ExtraHosts, SecurityOpt: h.SecurityOpt, Isolation: container.Isolation(h.Isolation), Binds: h.Volumes,
		LogConfig: container.LogConfig{Type: "none"},
		Resources: container.Resources{
			Memory: h.Memory, MemorySwap: h.MemorySwap, CPUShares: h.CPUShares, CPUQuota: h.CPUQuota, CPUPeriod: h.CPUPeriod,
			CpusetCpus: h.CPUSetCPUs, CpusetMems: h.CPUSetMems, CgroupParent: h.CgroupParent,
		},
	}
	if h.Ulimits != "" {
		var limits []*units.Ulimit
		if err := json.Unmarshal([]byte(h.Ulimits), &limits); err != nil {
			return nil, errdef.Invalid.Errorf("ulimits: %w", err)
		}
		out.Ulimits = limits
	}
	return out, nil
}

// ContainerConfig is what a container takes from an image's configuration.
func ContainerConfig(c dockerspec.DockerOCIImageConfig) *container.Config {
	out := &container.Config{
		User: c.User, Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd, Volumes: c.Volumes, WorkingDir: c.WorkingDir, Labels: c.Labels,
		StopSignal: c.StopSignal, ArgsEscaped: c.ArgsEscaped, Healthcheck: c.Healthcheck, OnBuild: c.OnBuild, Shell: c.Shell,
	}
	for p := range c.ExposedPorts {
		if port, err := network.ParsePort(p); err == nil {
			if out.ExposedPorts == nil {
				out.ExposedPorts = network.PortSet{}
			}
			out.ExposedPorts[port] = struct{}{}
		}
	}
	return out
}

// changed applies Dockerfile instructions, as docker commit --change does.
func changed(c *container.Config, lines []string) (*container.Config, error) {
	if len(lines) == 0 {
		return c, nil
	}
	after, err := build.Change(imageConfig(c), lines)
	if err != nil {
		return nil, err
	}
	return ContainerConfig(after), nil
}

// ImageLoad adds the images of an archive, or those for a platform.
func (e *Engine) ImageLoad(ctx context.Context, r io.Reader, p oci.Platform, progress func(archive.Progress)) error {
	var loaded []oci.ImageID
	err := archive.Load(ctx, e.images, r, archive.LoadOptions{Platform: p, Progress: func(p archive.Progress) {
		if p.Loaded != "" {
			e.publishImage(events.ActionLoad, string(p.ImageID), p.Loaded)
			loaded = append(loaded, p.ImageID)
		}
		progress(p)
	}})
	for _, id := range slices.Compact(loaded) {
		if err == nil {
			_, err = e.undelta(ctx, id, func(registry.Progress) {})
		}
	}
	return err
}

// ImageSave checks that all images are here, and for the platform if one is
// given, and returns a function that writes them as one archive.
func (e *Engine) ImageSave(ctx context.Context, names []string, p oci.Platform) (func(io.Writer) error, error) {
	if len(names) == 0 {
		return nil, errdef.Invalid.Errorf("name an image to save")
	}
	for _, name := range names {
		img, err := e.image(name)
		if err != nil {
			return nil, err
		}
		if err := matches(img, name, p); err != nil {
			return nil, err
		}
		e.publishImage(events.ActionSave, string(img.ID), name)
	}
	return func(w io.Writer) error { return archive.Save(ctx, e.images, w, names) }, nil
}

// ImportOptions are those of docker import.
type ImportOptions struct {
	Repo, Tag string
	Message   string
	Changes   []string // Dockerfile instructions
	Platform  oci.Platform
}

// ImageImport makes an image of one layer from a root file system.
func (e *Engine) ImageImport(ctx context.Context, r io.Reader, o ImportOptions) (oci.ImageID, error) {
	config, err := build.Change(dockerspec.DockerOCIImageConfig{}, o.Changes)
	if err != nil {
		return "", err
	}
	id, err := archive.Import(ctx, e.images, r, archive.ImportOptions{Config: config, Message: o.Message, Platform: o.Platform, Created: time.Now()})
	if err != nil {
		return "", err
	}
	name := string(id)
	if o.Repo != "" {
		if err := e.ImageTag(name, o.Repo, o.Tag); err != nil {
			return "", err
		}
		name = strings.TrimSuffix(o.Repo+":"+o.Tag, ":")
	}
	e.publishImage(events.ActionImport, string(id), name)
	return id, nil
}
