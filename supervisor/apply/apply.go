// Package apply carries out the steps of package plan through the Docker API.
//
// Do does one step and returns when it is done; a step that finds its work
// done already succeeds, because the engine may have been faster, or a crash
// came between doing and knowing. Steps of one round may run at the same time.
package apply

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/supervisor/client"
	"github.com/minke-os/minke/supervisor/lock"
	"github.com/minke-os/minke/supervisor/model"
	"github.com/minke-os/minke/supervisor/plan"
)

// An Engine is the part of a Docker API client that acting needs.
type Engine interface {
	ContainerInspect(context.Context, string, client.ContainerInspectOptions) (client.ContainerInspectResult, error)
	ContainerCreate(context.Context, client.ContainerCreateOptions) (client.ContainerCreateResult, error)
	ContainerStart(context.Context, string, client.ContainerStartOptions) (client.ContainerStartResult, error)
	ContainerStop(context.Context, string, client.ContainerStopOptions) (client.ContainerStopResult, error)
	ContainerRemove(context.Context, string, client.ContainerRemoveOptions) (client.ContainerRemoveResult, error)
	ContainerRename(context.Context, string, client.ContainerRenameOptions) (client.ContainerRenameResult, error)
	ContainerUpdate(context.Context, string, client.ContainerUpdateOptions) (client.ContainerUpdateResult, error)
	NetworkCreate(context.Context, string, client.NetworkCreateOptions) (client.NetworkCreateResult, error)
	NetworkRemove(context.Context, string, client.NetworkRemoveOptions) (client.NetworkRemoveResult, error)
	NetworkConnect(context.Context, string, client.NetworkConnectOptions) (client.NetworkConnectResult, error)
	VolumeCreate(context.Context, client.VolumeCreateOptions) (client.VolumeCreateResult, error)
	VolumeRemove(context.Context, string, client.VolumeRemoveOptions) (client.VolumeRemoveResult, error)
}

// An Applier does steps.
type Applier struct {
	Engine Engine
	Locks  *lock.Locks
}

// A Round is what the steps of one round refer to.
type Round struct {
	Want  plan.Want
	Cur   plan.Current
	Force bool // remove services' own update locks
}

// Do does one step. Fetch, TakeLock and ReleaseLock belong to the state
// engine, which remembers what they change.
func (a *Applier) Do(ctx context.Context, r Round, s plan.Step) error {
	switch s.Kind {
	case plan.EnsureAPINetwork:
		return a.apiNetwork(ctx, r)
	case plan.CreateNetwork:
		return a.createNetwork(ctx, r, s)
	case plan.RemoveNetwork:
		_, err := a.Engine.NetworkRemove(ctx, s.Object, client.NetworkRemoveOptions{})
		return wrap(gone(err), "remove network %s", s.Object)
	case plan.CreateVolume:
		return a.createVolume(ctx, r, s)
	case plan.RemoveVolume:
		_, err := a.Engine.VolumeRemove(ctx, s.Object, client.VolumeRemoveOptions{})
		return wrap(gone(err), "remove volume %s", s.Object)
	case plan.Kill:
		return a.kill(ctx, s)
	case plan.Stop:
		return a.stop(ctx, s)
	case plan.Create:
		_, err := a.create(ctx, r, s)
		return err
	case plan.Start:
		return a.start(ctx, r, s)
	case plan.Rename:
		return a.rename(ctx, r, s)
	case plan.StepAside:
		return a.stepAside(ctx, s)
	}
	return fmt.Errorf("no way to do %q", s.Kind)
}

func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}

// gone takes "there is no such object" for success.
func gone(err error) error {
	if cerrdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// exists takes "there is already such an object" for success.
func exists(err error) error {
	if cerrdefs.IsConflict(err) || cerrdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func (a *Applier) apiNetwork(ctx context.Context, r Round) error {
	if slices.ContainsFunc(r.Cur.Networks, func(n plan.Network) bool { return n.Name == model.SupervisorNetwork }) {
		if _, err := a.Engine.NetworkRemove(ctx, model.SupervisorNetwork, client.NetworkRemoveOptions{}); gone(err) != nil {
			return fmt.Errorf("remove network %s: %w", model.SupervisorNetwork, err)
		}
	}
	_, err := a.Engine.NetworkCreate(ctx, model.SupervisorNetwork, client.NetworkCreateOptions{
		Driver:  "bridge",
		Options: map[string]string{"com.docker.network.bridge.name": model.SupervisorNetwork},
		IPAM: &network.IPAM{Driver: "default", Config: []network.IPAMConfig{{
			Subnet:  netip.MustParsePrefix(model.SupervisorSubnet),
			Gateway: netip.MustParseAddr(model.SupervisorGateway),
		}}},
	})
	return wrap(exists(err), "create network %s", model.SupervisorNetwork)
}

func (a *Applier) createNetwork(ctx context.Context, r Round, s plan.Step) error {
	app, err := r.app(s)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(app.Networks, func(n model.NetworkSpec) bool { return n.Name == s.Object })
	if i < 0 {
		return fmt.Errorf("create network %s: it is not wanted", s.Object)
	}
	n := app.Networks[i]
	opts := client.NetworkCreateOptions{
		Driver: n.Driver, Options: n.Options, Labels: n.Labels,
		Internal: n.Internal, ConfigOnly: n.ConfigOnly, IPAM: n.IPAM,
	}
	if n.IPv6 {
		opts.EnableIPv6 = &n.IPv6
	}
	_, err = a.Engine.NetworkCreate(ctx, n.Name, opts)
	return wrap(exists(err), "create network %s", n.Name)
}

func (a *Applier) createVolume(ctx context.Context, r Round, s plan.Step) error {
	app, err := r.app(s)
	if err != nil {
		return err
	}
	for _, v := range app.Volumes {
		if v.Name == s.Object {
			_, err := a.Engine.VolumeCreate(ctx, client.VolumeCreateOptions{Name: v.Name, Driver: v.Driver, DriverOpts: v.Options, Labels: v.Labels})
			return wrap(err, "create volume %s", v.Name)
		}
	}
	return fmt.Errorf("create volume %s: it is not wanted", s.Object)
}

func (a *Applier) kill(ctx context.Context, s plan.Step) error {
	if err := a.stop(ctx, s); err != nil {
		return err
	}
	_, err := a.Engine.ContainerRemove(ctx, s.Container, client.ContainerRemoveOptions{RemoveVolumes: true, Force: true})
	return wrap(gone(err), "remove container of service %s", s.Service)
}

func (a *Applier) start(ctx context.Context, r Round, s plan.Step) error {
	id := s.Container
	if id == "" {
		var err error
		if id, err = a.create(ctx, r, s); err != nil {
			return err
		}
	}
	if err := a.Locks.Prepare(s.App, s.Service); err != nil { // a reboot empties /tmp
		return fmt.Errorf("start service %s: %w", s.Service, err)
	}
	_, err := a.Engine.ContainerStart(ctx, id, client.ContainerStartOptions{})
	return wrap(err, "start service %s", s.Service)
}

// create makes the container and attaches it to all its networks.
func (a *Applier) create(ctx context.Context, r Round, s plan.Step) (id string, err error) {
	spec, err := r.spec(s)
	if err != nil {
		return "", err
	}
	if err := a.Locks.Prepare(s.App, s.Service); err != nil {
		return "", fmt.Errorf("create service %s: %w", s.Service, err)
	}
	cfg, host := *spec.Config, *spec.Host
	cfg.Image = cmp.Or(r.Cur.Images[spec.Image], spec.Image)
	if spec.NetworkOf != "" {
		other, err := r.containerOf(s.App, spec.NetworkOf)
		if err != nil {
			return "", fmt.Errorf("create service %s: %w", s.Service, err)
		}
		host.NetworkMode = container.NetworkMode("container:" + other)
	}
	opts := client.ContainerCreateOptions{Name: spec.Name, Config: &cfg, HostConfig: &host}
	first, others := splitEndpoints(spec)
	if first != nil {
		opts.NetworkingConfig = &network.NetworkingConfig{
			EndpointsConfig: map[string]*network.EndpointSettings{first.Network: first.Settings.Copy()},
		}
	}
	res, err := a.Engine.ContainerCreate(ctx, opts)
	if err != nil {
		return "", fmt.Errorf("create service %s: %w", s.Service, err)
	}
	for _, ep := range others {
		_, err := a.Engine.NetworkConnect(ctx, ep.Network, client.NetworkConnectOptions{Container: res.ID, EndpointConfig: ep.Settings.Copy()})
		if err != nil {
			// Half attached it would count as created; the next round makes
			// it anew.
			_, rerr := a.Engine.ContainerRemove(ctx, res.ID, client.ContainerRemoveOptions{RemoveVolumes: true, Force: true})
			return "", fmt.Errorf("create service %s: connect to %s: %w", s.Service, ep.Network, cmp.Or(err, rerr))
		}
	}
	return res.ID, nil
}

// splitEndpoints separates the endpoint for the create call from those that
// are connected later. In the engine's bridge only connecting is possible.
func splitEndpoints(spec model.Spec) (first *model.Endpoint, others []model.Endpoint) {
	if len(spec.Endpoints) == 0 || spec.Endpoints[0].Network != string(spec.Host.NetworkMode) {
		return nil, spec.Endpoints
	}
	return &spec.Endpoints[0], spec.Endpoints[1:]
}

func (a *Applier) rename(ctx context.Context, r Round, s plan.Step) error {
	spec, err := r.spec(s)
	if err != nil {
		return err
	}
	for _, c := range r.Cur.Containers {
		if c.ID == s.Container && strings.HasPrefix(c.Name, model.OldPrefix) {
			// It was to be handed over and is wanted again.
			if err := a.setRestart(ctx, c.ID, spec.Host.RestartPolicy); err != nil {
				return fmt.Errorf("keep service %s: %w", s.Service, err)
			}
		}
	}
	_, err = a.Engine.ContainerRename(ctx, s.Container, client.ContainerRenameOptions{NewName: s.Name})
	return wrap(err, "rename container of service %s", s.Service)
}

// stepAside keeps the old container from coming back by itself, then gives
// its name away.
func (a *Applier) stepAside(ctx context.Context, s plan.Step) error {
	if err := a.setRestart(ctx, s.Container, container.RestartPolicy{Name: container.RestartPolicyDisabled}); err != nil {
		return fmt.Errorf("hand over service %s: %w", s.Service, err)
	}
	if _, err := a.Locks.HandedOver(s.App, s.Service); err != nil { // of an earlier time
		return err
	}
	_, err := a.Engine.ContainerRename(ctx, s.Container, client.ContainerRenameOptions{NewName: s.Name})
	return wrap(err, "hand over service %s", s.Service)
}

func (a *Applier) setRestart(ctx context.Context, id string, p container.RestartPolicy) error {
	_, err := a.Engine.ContainerUpdate(ctx, id, client.ContainerUpdateOptions{RestartPolicy: &p})
	return err
}

func (r Round) app(s plan.Step) (model.AppSpec, error) {
	for _, a := range r.Want.Apps {
		if a.ID == s.App {
			return a, nil
		}
	}
	return model.AppSpec{}, errdef.NotFound.Errorf("%s: application %d is not wanted", s.Kind, s.App)
}

func (r Round) spec(s plan.Step) (model.Spec, error) {
	app, err := r.app(s)
	if err != nil {
		return model.Spec{}, err
	}
	for _, spec := range app.Services {
		if spec.Service == s.Service {
			return spec, nil
		}
	}
	return model.Spec{}, errdef.NotFound.Errorf("%s: application %d has no service %s", s.Kind, s.App, s.Service)
}

func (r Round) containerOf(app model.AppID, service string) (string, error) {
	for _, c := range slices.Backward(r.Cur.Containers) {
		if c.App == app && c.Service == service {
			return c.ID, nil
		}
	}
	return "", errdef.Unavailable.Errorf("service %s, whose network it shares, has no container", service)
}
