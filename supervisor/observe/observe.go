// Package observe reads from the engine what the supervisor manages.
//
// It only reads; a Current is a snapshot that may be old by the time it is
// used, which does no harm, because every step is harmless when repeated.
// Objects that nobody labelled as supervised are not seen, and so never
// touched.
package observe

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/minke-os/minke/internal/order"
	"github.com/minke-os/minke/supervisor/client"
	"github.com/minke-os/minke/supervisor/model"
	"github.com/minke-os/minke/supervisor/plan"
)

// An Engine is the part of a Docker API client that reading needs.
type Engine interface {
	ContainerList(context.Context, client.ContainerListOptions) (client.ContainerListResult, error)
	ContainerInspect(context.Context, string, client.ContainerInspectOptions) (client.ContainerInspectResult, error)
	NetworkList(context.Context, client.NetworkListOptions) (client.NetworkListResult, error)
	VolumeList(context.Context, client.VolumeListOptions) (client.VolumeListResult, error)
	ImageInspect(context.Context, string) (client.ImageInspectResult, error)
}

// Observe lists what the engine has, and which of the images are present; name
// is by which name the engine has one.
func Observe(ctx context.Context, e Engine, images []string, name func(ref string) string) (plan.Current, error) {
	var cur plan.Current
	var err error
	if cur.Containers, err = containers(ctx, e); err != nil {
		return plan.Current{}, fmt.Errorf("list containers: %w", err)
	}
	if cur.Networks, err = networks(ctx, e); err != nil {
		return plan.Current{}, fmt.Errorf("list networks: %w", err)
	}
	if cur.Volumes, err = volumes(ctx, e); err != nil {
		return plan.Current{}, fmt.Errorf("list volumes: %w", err)
	}
	cur.Images = map[string]string{}
	for _, ref := range images {
		img, err := e.ImageInspect(ctx, name(ref))
		if cerrdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return plan.Current{}, fmt.Errorf("inspect image %s: %w", ref, err)
		}
		cur.Images[ref] = img.ID
	}
	return cur, nil
}

// supervised are the labels by which a container is ours, in both spellings.
var supervised = []string{model.LabelSupervised, "io.resin.supervised"}

func containers(ctx context.Context, e Engine) ([]plan.Container, error) {
	var out []plan.Container
	for _, label := range supervised {
		list, err := e.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: make(client.Filters).Add("label", label)})
		if err != nil {
			return nil, err
		}
		for _, s := range list.Items {
			c, err := inspect(ctx, e, s.ID)
			if cerrdefs.IsNotFound(err) { // removed since
				continue
			}
			if err != nil {
				return nil, err
			}
			out = append(out, c)
		}
	}
	order.By(out, func(a, b plan.Container) int {
		if n := a.Created.Compare(b.Created); n != 0 {
			return n
		}
		return strings.Compare(a.ID, b.ID)
	})
	return slices.CompactFunc(out, func(a, b plan.Container) bool { return a.ID == b.ID }), nil
}

func inspect(ctx context.Context, e Engine, id string) (plan.Container, error) {
	res, err := e.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	if err != nil {
		return plan.Container{}, err
	}
	return convert(res.Container)
}

func convert(in container.InspectResponse) (plan.Container, error) {
	if in.Config == nil || in.HostConfig == nil || in.State == nil {
		return plan.Container{}, errors.New("the engine's answer about container " + in.ID + " lacks its configuration")
	}
	labels := in.Config.Labels
	app, _ := strconv.Atoi(label(labels, "app-id"))
	serviceID, _ := strconv.Atoi(label(labels, "service-id"))
	created, _ := time.Parse(time.RFC3339Nano, in.Created)
	started, _ := time.Parse(time.RFC3339Nano, in.State.StartedAt)
	c := plan.Container{
		ID:        in.ID,
		Name:      strings.TrimPrefix(in.Name, "/"),
		App:       model.AppID(app),
		Service:   label(labels, "service-name"),
		ServiceID: serviceID,
		ImageID:   in.Image,
		ImageRef:  in.Config.Image,
		State:     string(in.State.Status),
		ExitCode:  in.State.ExitCode,
		Restarts:  in.RestartCount,
		Started:   started.Year() > 1,
		Error:     in.State.Error,
		Print:     model.Fingerprint(labels[model.LabelPrint]),
		Restart:   string(in.HostConfig.RestartPolicy.Name),
		TTY:       in.Config.Tty,
		Created:   created,
		Env:       in.Config.Env,
	}
	if h := in.State.Health; h != nil && h.Status != container.NoHealthcheck {
		c.Health = string(h.Status)
	}
	if of, ok := strings.CutPrefix(string(in.HostConfig.NetworkMode), "container:"); ok {
		c.NetworkOf = of
	}
	if in.NetworkSettings != nil {
		for name := range in.NetworkSettings.Networks {
			c.Networks = append(c.Networks, name)
		}
	}
	for _, m := range in.Mounts {
		if m.Type == "volume" {
			c.Volumes = append(c.Volumes, m.Name)
		}
	}
	slices.Sort(c.Networks)
	slices.Sort(c.Volumes)
	return c, nil
}

func label(labels map[string]string, name string) string {
	if v, ok := labels["io.balena."+name]; ok {
		return v
	}
	return labels["io.resin."+name]
}

func networks(ctx context.Context, e Engine) ([]plan.Network, error) {
	res, err := e.NetworkList(ctx, client.NetworkListOptions{})
	if err != nil {
		return nil, err
	}
	var out []plan.Network
	for _, n := range res.Items {
		if n.Name == model.SupervisorNetwork {
			right := n.Options["com.docker.network.bridge.name"] == model.SupervisorNetwork &&
				slices.ContainsFunc(n.IPAM.Config, func(c network.IPAMConfig) bool {
					return c.Subnet.String() == model.SupervisorSubnet && c.Gateway.String() == model.SupervisorGateway
				})
			out = append(out, plan.Network{Name: n.Name, Right: right})
			continue
		}
		if !ours(n.Labels) {
			continue
		}
		app, _ := strconv.Atoi(label(n.Labels, "app-id"))
		out = append(out, plan.Network{Name: n.Name, App: model.AppID(app), Print: model.Fingerprint(n.Labels[model.LabelPrint])})
	}
	order.By(out, func(a, b plan.Network) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func ours(labels map[string]string) bool {
	return slices.ContainsFunc(supervised, func(l string) bool { _, ok := labels[l]; return ok })
}

var volumeName = regexp.MustCompile(`^(\d+)_(\S+)$`)

func volumes(ctx context.Context, e Engine) ([]plan.Volume, error) {
	res, err := e.VolumeList(ctx, client.VolumeListOptions{})
	if err != nil {
		return nil, err
	}
	var out []plan.Volume
	for _, v := range res.Items {
		m := volumeName.FindStringSubmatch(v.Name)
		if m == nil {
			continue
		}
		app, err := strconv.Atoi(m[1])
		if err != nil {
			continue
		}
		// Older supervisors labelled no volumes: the name decides whether a
		// target may use it, the label whether it may go with its application.
		if !ours(v.Labels) {
			app = 0
		}
		out = append(out, plan.Volume{Name: v.Name, App: model.AppID(app), Driver: v.Driver, Options: v.Options, Labels: v.Labels})
	}
	order.By(out, func(a, b plan.Volume) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}
