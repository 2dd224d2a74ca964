package client

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"github.com/minke-os/minke/oci"
)

type (
	ContainerListOptions struct {
		All     bool
		Filters Filters
	}
	ContainerListResult struct{ Items []container.Summary }

	ContainerInspectOptions struct{}
	ContainerInspectResult  struct{ Container container.InspectResponse }

	ContainerCreateOptions struct {
		Name             string
		Config           *container.Config
		HostConfig       *container.HostConfig
		NetworkingConfig *network.NetworkingConfig
	}
	ContainerCreateResult struct {
		ID       string
		Warnings []string
	}

	ContainerStartOptions struct{}
	ContainerStartResult  struct{}

	ContainerStopOptions struct {
		Timeout *int // seconds until it is killed; nil for the container's own
	}
	ContainerStopResult struct{}

	ContainerRemoveOptions struct{ RemoveVolumes, Force bool }
	ContainerRemoveResult  struct{}

	ContainerRenameOptions struct{ NewName string }
	ContainerRenameResult  struct{}

	ContainerUpdateOptions struct{ RestartPolicy *container.RestartPolicy }
	ContainerUpdateResult  struct{ Warnings []string }

	ContainerLogsOptions struct {
		ShowStdout, ShowStderr, Timestamps, Follow bool
		Since                                      string // in seconds, with a fraction
		Tail                                       string // a number of lines; "" and "all" are all
	}
	ContainerLogsResult = io.ReadCloser
)

func (c *Client) ContainerList(ctx context.Context, o ContainerListOptions) (res ContainerListResult, err error) {
	err = c.list(ctx, &res.Items, o.All, o.Filters, "containers", "json")
	return res, err
}

func (c *Client) ContainerInspect(ctx context.Context, id string, _ ContainerInspectOptions) (res ContainerInspectResult, err error) {
	err = c.do(ctx, get("containers", id, "json"), &res.Container)
	return res, err
}

func (c *Client) ContainerCreate(ctx context.Context, o ContainerCreateOptions) (ContainerCreateResult, error) {
	r := post("containers", "create")
	if o.Name != "" {
		r.query = url.Values{"name": {o.Name}}
	}
	r.body = container.CreateRequest{Config: o.Config, HostConfig: o.HostConfig, NetworkingConfig: o.NetworkingConfig}
	var res container.CreateResponse
	err := c.do(ctx, r, &res)
	return ContainerCreateResult{res.ID, res.Warnings}, err
}

// ContainerStart of one that runs does nothing.
func (c *Client) ContainerStart(ctx context.Context, id string, _ ContainerStartOptions) (ContainerStartResult, error) {
	return ContainerStartResult{}, c.do(ctx, post("containers", id, "start"), nil)
}

// ContainerStop of one that does not run does nothing.
func (c *Client) ContainerStop(ctx context.Context, id string, o ContainerStopOptions) (ContainerStopResult, error) {
	r := post("containers", id, "stop")
	if o.Timeout != nil {
		r.query = url.Values{"t": {strconv.Itoa(*o.Timeout)}}
	}
	return ContainerStopResult{}, c.do(ctx, r, nil)
}

func (c *Client) ContainerRemove(ctx context.Context, id string, o ContainerRemoveOptions) (ContainerRemoveResult, error) {
	r := del("containers", id)
	r.query = flags(flag{"v", o.RemoveVolumes}, flag{"force", o.Force})
	return ContainerRemoveResult{}, c.do(ctx, r, nil)
}

func (c *Client) ContainerRename(ctx context.Context, id string, o ContainerRenameOptions) (ContainerRenameResult, error) {
	r := post("containers", id, "rename")
	r.query = url.Values{"name": {o.NewName}}
	return ContainerRenameResult{}, c.do(ctx, r, nil)
}

func (c *Client) ContainerUpdate(ctx context.Context, id string, o ContainerUpdateOptions) (ContainerUpdateResult, error) {
	r := post("containers", id, "update")
	var body container.UpdateConfig
	if o.RestartPolicy != nil {
		body.RestartPolicy = *o.RestartPolicy
	}
	r.body = body
	var res container.UpdateResponse
	err := c.do(ctx, r, &res)
	return ContainerUpdateResult{res.Warnings}, err
}

// ContainerLogs gives a container's output, in Docker's frames unless it has a
// terminal. The caller closes it.
func (c *Client) ContainerLogs(ctx context.Context, id string, o ContainerLogsOptions) (ContainerLogsResult, error) {
	r := get("containers", id, "logs")
	r.query = flags(flag{"stdout", o.ShowStdout}, flag{"stderr", o.ShowStderr}, flag{"timestamps", o.Timestamps}, flag{"follow", o.Follow})
	r.query.Set("tail", cmp.Or(o.Tail, "all"))
	if o.Since != "" {
		r.query.Set("since", o.Since)
	}
	resp, err := c.stream(ctx, r)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

type (
	NetworkListOptions struct{ Filters Filters }
	NetworkListResult  struct{ Items []network.Summary }

	NetworkCreateOptions struct {
		Driver     string
		EnableIPv4 *bool
		EnableIPv6 *bool
		IPAM       *network.IPAM
		Internal   bool
		Attachable bool
		ConfigOnly bool
		Options    map[string]string
		Labels     map[string]string
	}
	NetworkCreateResult struct{ ID string }

	NetworkRemoveOptions struct{}
	NetworkRemoveResult  struct{}

	NetworkConnectOptions struct {
		Container      string
		EndpointConfig *network.EndpointSettings
	}
	NetworkConnectResult struct{}
)

func (c *Client) NetworkList(ctx context.Context, o NetworkListOptions) (res NetworkListResult, err error) {
	err = c.list(ctx, &res.Items, false, o.Filters, "networks")
	return res, err
}

func (c *Client) NetworkCreate(ctx context.Context, name string, o NetworkCreateOptions) (NetworkCreateResult, error) {
	r := post("networks", "create")
	r.body = network.CreateRequest{
		Name: name, Driver: o.Driver, EnableIPv4: o.EnableIPv4, EnableIPv6: o.EnableIPv6, IPAM: o.IPAM, Internal: o.Internal,
		Attachable: o.Attachable, ConfigOnly: o.ConfigOnly, Options: o.Options, Labels: o.Labels,
	}
	var res network.CreateResponse
	err := c.do(ctx, r, &res)
	return NetworkCreateResult{res.ID}, err
}

func (c *Client) NetworkRemove(ctx context.Context, id string, _ NetworkRemoveOptions) (NetworkRemoveResult, error) {
	return NetworkRemoveResult{}, c.do(ctx, del("networks", id), nil)
}

func (c *Client) NetworkConnect(ctx context.Context, id string, o NetworkConnectOptions) (NetworkConnectResult, error) {
	r := post("networks", id, "connect")
	r.body = network.ConnectRequest{Container: o.Container, EndpointConfig: o.EndpointConfig}
	return NetworkConnectResult{}, c.do(ctx, r, nil)
}

type (
	VolumeListOptions struct{ Filters Filters }
	VolumeListResult  struct{ Items []volume.Volume }

	VolumeCreateOptions struct {
		Name       string
		Driver     string
		DriverOpts map[string]string
		Labels     map[string]string
	}
	VolumeCreateResult struct{ Volume volume.Volume }

	VolumeRemoveOptions struct{}
	VolumeRemoveResult  struct{}
)

func (c *Client) VolumeList(ctx context.Context, o VolumeListOptions) (VolumeListResult, error) {
	var res volume.ListResponse
	err := c.list(ctx, &res, false, o.Filters, "volumes")
	return VolumeListResult{res.Volumes}, err
}

func (c *Client) VolumeCreate(ctx context.Context, o VolumeCreateOptions) (res VolumeCreateResult, err error) {
	r := post("volumes", "create")
	r.body = volume.CreateRequest{Name: o.Name, Driver: o.Driver, DriverOpts: o.DriverOpts, Labels: o.Labels}
	err = c.do(ctx, r, &res.Volume)
	return res, err
}

func (c *Client) VolumeRemove(ctx context.Context, name string, _ VolumeRemoveOptions) (VolumeRemoveResult, error) {
	return VolumeRemoveResult{}, c.do(ctx, del("volumes", name), nil)
}

type (
	ImageListOptions struct {
		All     bool
		Filters Filters
	}
	ImageListResult struct{ Items []image.Summary }

	ImageInspectResult struct{ image.InspectResponse }

	ImageRemoveOptions struct{ Force, PruneChildren bool }
	ImageRemoveResult  struct{ Items []image.DeleteResponse }

	ImagePullOptions struct {
		RegistryAuth string // a registry.AuthConfig, as base64 for URLs
	}

	// An ImagePullResponse is how a pull gets on. Its end is the end of the
	// pull; who closes it before cancels that.
	ImagePullResponse interface {
		io.ReadCloser
		JSONMessages(context.Context) iter.Seq2[jsonstream.Message, error]
	}
)

func (c *Client) ImageList(ctx context.Context, o ImageListOptions) (res ImageListResult, err error) {
	err = c.list(ctx, &res.Items, o.All, o.Filters, "images", "json")
	return res, err
}

func (c *Client) ImageInspect(ctx context.Context, name string) (res ImageInspectResult, err error) {
	err = c.do(ctx, get("images", name, "json"), &res.InspectResponse)
	return res, err
}

func (c *Client) ImageRemove(ctx context.Context, name string, o ImageRemoveOptions) (res ImageRemoveResult, err error) {
	r := del("images", name)
	r.query = flags(flag{"force", o.Force}, flag{"noprune", !o.PruneChildren})
	err = c.do(ctx, r, &res.Items)
	return res, err
}

func (c *Client) ImagePull(ctx context.Context, name string, o ImagePullOptions) (ImagePullResponse, error) {
	ref, err := oci.ParseReference(name)
	if err != nil {
		return nil, err
	}
	r := post("images", "create") // whose tag may be a digest
	r.query = url.Values{"fromImage": {ref.Repository()}, "tag": {cmp.Or(string(ref.Digest), ref.Tag)}}
	if o.RegistryAuth != "" {
		r.headers = http.Header{registry.AuthHeader: {o.RegistryAuth}}
	}
	resp, err := c.stream(ctx, r)
	if err != nil {
		return nil, err
	}
	return messages{resp.Body}, nil
}

type messages struct{ io.ReadCloser }

func (m messages) JSONMessages(ctx context.Context) iter.Seq2[jsonstream.Message, error] {
	return func(yield func(jsonstream.Message, error) bool) {
		for dec := json.NewDecoder(m); ; {
			var msg jsonstream.Message
			err := dec.Decode(&msg)
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(msg, cmp.Or(ctx.Err(), err))
				return
			}
			if !yield(msg, nil) {
				return
			}
		}
	}
}

type (
	InfoOptions      struct{}
	SystemInfoResult struct{ Info system.Info }
)

func (c *Client) Info(ctx context.Context, _ InfoOptions) (res SystemInfoResult, err error) {
	err = c.do(ctx, get("info"), &res.Info)
	return res, err
}

type (
	EventsListOptions struct{ Filters Filters }

	// An EventsResult has events until Err, which then has why there are no more.
	EventsResult struct {
		Messages <-chan events.Message
		Err      <-chan error
	}
)

// Events gives what happens from now on, until ctx ends. When it returns, the
// engine is listening.
func (c *Client) Events(ctx context.Context, o EventsListOptions) EventsResult {
	list, failed := make(chan events.Message), make(chan error, 1)
	res := EventsResult{list, failed}
	r := get("events")
	var err error
	if r.query, err = filtered(o.Filters); err != nil {
		failed <- err
		return res
	}
	resp, err := c.stream(ctx, r)
	if err != nil {
		failed <- err
		return res
	}
	go func() {
		defer resp.Body.Close()
		for dec := json.NewDecoder(resp.Body); ; {
			var e events.Message
			if err := dec.Decode(&e); err != nil {
				failed <- cmp.Or(ctx.Err(), err)
				return
			}
			select {
			case list <- e:
			case <-ctx.Done():
				failed <- ctx.Err()
				return
			}
		}
	}()
	return res
}

func get(path ...string) call  { return call{method: http.MethodGet, path: path} }
func post(path ...string) call { return call{method: http.MethodPost, path: path} }
func del(path ...string) call  { return call{method: http.MethodDelete, path: path} }

func (c *Client) list(ctx context.Context, out any, all bool, f Filters, path ...string) (err error) {
	r := get(path...)
	if r.query, err = filtered(f); err != nil {
		return err
	}
	if all {
		r.query.Set("all", "1")
	}
	return c.do(ctx, r, out)
}

func filtered(f Filters) (url.Values, error) {
	if len(f) == 0 {
		return url.Values{}, nil
	}
	text, err := json.Marshal(f)
	return url.Values{"filters": {string(text)}}, err
}

type flag struct {
	name string
	set  bool
}

func flags(list ...flag) url.Values {
	q := url.Values{}
	for _, f := range list {
		if f.set {
			q.Set(f.name, "1")
		}
	}
	return q
}
