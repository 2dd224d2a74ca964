package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"github.com/minke-os/minke/engine"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// The versions of the API we speak. Clients of Docker 1.10 and newer fit.
const (
	MaxVersion = "1.56"
	MinVersion = "1.22"
)

// A version is the minor number; the major one has always been 1.
type version int

type versionKey struct{}

func versionOf(r *http.Request) version { return r.Context().Value(versionKey{}).(version) }

func minor(s string) version {
	n, _ := strconv.Atoi(strings.TrimPrefix(s, "1."))
	return version(n)
}

// cutVersion splits "/v1.41/info". A path without version means the newest.
func cutVersion(path string) (version, string, error) {
	rest, ok := strings.CutPrefix(path, "/v")
	if !ok {
		return minor(MaxVersion), path, nil
	}
	text, rest, _ := strings.Cut(rest, "/")
	major, min, ok := strings.Cut(text, ".")
	n, err := strconv.Atoi(min)
	if !ok || err != nil || strings.Trim(major, "0123456789") != "" || major == "" {
		return minor(MaxVersion), path, nil // as /volumes
	}
	switch {
	case major != "1" || version(n) > minor(MaxVersion):
		return 0, path, errdef.Invalid.Errorf("client version %s is too new. Maximum supported API version is %s", text, MaxVersion)
	case version(n) < minor(MinVersion):
		return 0, path, errdef.Invalid.Errorf("client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", text, MinVersion)
	}
	return version(n), "/" + rest, nil
}

// streamType is the content type of attach and logs: until 1.42 it did not say
// whether the stream is framed.
func streamType(v version, tty bool) string {
	if v >= 42 && !tty {
		return "application/vnd.docker.multiplexed-stream"
	}
	return "application/vnd.docker.raw-stream"
}

// usage is GET /system/df: totals since 1.52, and beside them the flat lists
// that it had before. Scripts that ask for the newest version, whatever it is,
// go on reading those.
type usage struct {
	*system.DiskUsage
	LayersSize int64
	Images     any // of image.Summary
	Containers []container.Summary
	Volumes    []volume.Volume
	BuildCache []build.CacheRecord
}

func usageFor(v version, u engine.Usage, verbose bool) any {
	flat := usage{LayersSize: u.LayersSize, Images: oldImages(u.Images, v), Containers: u.Containers, Volumes: u.Volumes, BuildCache: u.BuildCache}
	if v < 52 {
		return flat
	}
	out := system.DiskUsage{
		ImageUsage:      &image.DiskUsage{TotalCount: int64(len(u.Images)), TotalSize: u.LayersSize},
		ContainerUsage:  &container.DiskUsage{TotalCount: int64(len(u.Containers))},
		VolumeUsage:     &volume.DiskUsage{TotalCount: int64(len(u.Volumes))},
		BuildCacheUsage: &build.DiskUsage{TotalCount: int64(len(u.BuildCache))},
	}
	for _, img := range u.Images {
		if img.Containers > 0 {
			out.ImageUsage.ActiveCount++
		} else {
			out.ImageUsage.Reclaimable += img.Size - img.SharedSize
		}
	}
	for _, c := range u.Containers {
		out.ContainerUsage.TotalSize += c.SizeRw
		if c.State == container.StateRunning || c.State == container.StatePaused {
			out.ContainerUsage.ActiveCount++
		} else {
			out.ContainerUsage.Reclaimable += c.SizeRw
		}
	}
	for _, vol := range u.Volumes {
		out.VolumeUsage.TotalSize += vol.UsageData.Size
		if vol.UsageData.RefCount > 0 {
			out.VolumeUsage.ActiveCount++
		} else {
			out.VolumeUsage.Reclaimable += vol.UsageData.Size
		}
	}
	for _, c := range u.BuildCache {
		out.BuildCacheUsage.TotalSize += c.Size
		if c.InUse {
			out.BuildCacheUsage.ActiveCount++
		} else {
			out.BuildCacheUsage.Reclaimable += c.Size
		}
	}
	if verbose {
		out.BuildCacheUsage.Items = u.BuildCache
		out.ImageUsage.Items, out.ContainerUsage.Items, out.VolumeUsage.Items = u.Images, u.Containers, u.Volumes
	}
	flat.DiskUsage = &out
	return flat
}

// withAddress is GET /containers/{id}/json with the address of the default
// bridge at the top of NetworkSettings. Docker took it away in 1.52; scripts
// that ask for the newest version still look for it.
func withAddress(c container.InspectResponse) any {
	type settings struct {
		*container.NetworkSettings
		Bridge, Gateway, IPAddress, MacAddress, EndpointID       string
		GlobalIPv6Address, IPv6Gateway, LinkLocalIPv6Address     string
		IPPrefixLen, GlobalIPv6PrefixLen, LinkLocalIPv6PrefixLen int
		HairpinMode                                              bool
		SecondaryIPAddresses, SecondaryIPv6Addresses             []string
	}
	s := &settings{NetworkSettings: c.NetworkSettings}
	if ep := c.NetworkSettings.Networks["bridge"]; ep != nil {
		s.IPPrefixLen, s.EndpointID, s.MacAddress = ep.IPPrefixLen, ep.EndpointID, ep.MacAddress.String()
		if ep.IPAddress.IsValid() {
			s.IPAddress = ep.IPAddress.String()
		}
		if ep.Gateway.IsValid() {
			s.Gateway = ep.Gateway.String()
		}
	}
	return struct {
		container.InspectResponse
		NetworkSettings *settings
	}{c, s}
}

// createRequest is POST /containers/create with the hardware address that was
// the container's, not an endpoint's, until 1.44, and with the command and
// entry point as Docker takes them.
type createRequest struct {
	container.CreateRequest
	MacAddress      string
	Cmd, Entrypoint words
}

// words are a list, or one alone: the examples of Docker's API say
// "Entrypoint": "".
type words []string

func (w *words) UnmarshalJSON(b []byte) error {
	if bytes.HasPrefix(b, []byte{'"'}) {
		*w = words{""}
		return json.Unmarshal(b, &(*w)[0])
	}
	return json.Unmarshal(b, (*[]string)(w))
}

// settle puts what is beside the newest request into it.
func (c *createRequest) settle() error {
	if c.Config != nil {
		c.Config.Cmd, c.Config.Entrypoint = c.Cmd, c.Entrypoint
	}
	return c.settleMAC()
}

// settleMAC gives the address to the endpoint of the container's own network.
func (c *createRequest) settleMAC() error {
	if c.MacAddress == "" {
		return nil
	}
	mac, err := net.ParseMAC(c.MacAddress)
	if err != nil {
		return errdef.Invalid.Errorf("invalid MAC address: %s", c.MacAddress)
	}
	mode := container.NetworkMode(network.NetworkBridge)
	if c.HostConfig != nil && !c.HostConfig.NetworkMode.IsDefault() && c.HostConfig.NetworkMode != "" {
		mode = c.HostConfig.NetworkMode
	}
	if mode.IsHost() || mode.IsContainer() || mode.IsNone() {
		return errdef.Invalid.Errorf("conflicting options: mac-address and the network mode")
	}
	if c.NetworkingConfig == nil {
		c.NetworkingConfig = &network.NetworkingConfig{}
	}
	ends := c.NetworkingConfig.EndpointsConfig
	if ends == nil {
		ends = map[string]*network.EndpointSettings{}
		c.NetworkingConfig.EndpointsConfig = ends
	}
	name := string(mode)
	if ends[network.NetworkDefault] != nil && mode.IsBridge() {
		name = network.NetworkDefault
	}
	if ends[name] == nil {
		ends[name] = &network.EndpointSettings{}
	}
	if len(ends[name].MacAddress) == 0 {
		ends[name].MacAddress = network.HardwareAddr(mac)
	}
	return nil
}

// oldImage adds what GET /images/{name}/json had until 1.52, empty or not;
// until 1.50, when Config was a container's with all its fields; until 1.45,
// the container that it was committed from; and VirtualSize, until 1.44.
// Of these, ContainerConfig stays for ever: see withContainerConfig.
func oldImage(i engine.ImageDescription, v version) any {
	old := struct {
		image.InspectResponse
		Config          any
		ContainerConfig *container.Config `json:",omitempty"`
		Container       *string           `json:",omitempty"`
		Parent          oci.ImageID
		Comment         string
		Author          string
		DockerVersion   string
		VirtualSize     int64 `json:",omitempty"` // the same as Size since layers are shared
	}{InspectResponse: i.InspectResponse, Config: i.Config, Parent: i.Parent, Comment: i.Comment, Author: i.Author}
	if i.Config != nil {
		old.ContainerConfig = engine.ContainerConfig(*i.Config)
	}
	if v < 50 {
		old.Config = old.ContainerConfig
	}
	if v < 45 {
		old.Container = new(string)
	}
	if v < 44 {
		old.VirtualSize = i.Size
	}
	return old
}

// withContainerConfig is the newest GET /images/{name}/json for docker-compose
// 1, which asks for the newest version and reads an image's volumes there: it
// could not recreate a container without.
func withContainerConfig(i engine.ImageDescription) any {
	out := struct {
		image.InspectResponse
		ContainerConfig *container.Config `json:",omitempty"`
	}{InspectResponse: i.InspectResponse}
	if i.Config != nil {
		out.ContainerConfig = engine.ContainerConfig(*i.Config)
	}
	return out
}

// oldImages are those of GET /images/json and /system/df until 1.44: they have
// VirtualSize, and until 1.43 what has no name is called <none>.
func oldImages(list []image.Summary, v version) any {
	if v >= 44 {
		return list
	}
	type old struct {
		image.Summary
		VirtualSize int64
	}
	out := make([]old, len(list))
	for i, s := range list {
		if v < 43 && len(s.RepoTags)+len(s.RepoDigests) == 0 {
			s.RepoTags, s.RepoDigests = []string{"<none>:<none>"}, []string{"<none>@<none>"}
		}
		out[i] = old{s, s.Size}
	}
	return out
}

// oldNetworks are those of GET /networks: until 1.52 each had its containers,
// an empty list since 1.28.
func oldNetworks(list []network.Network, v version) any {
	if v >= 52 {
		return list
	}
	type old struct {
		network.Network
		Containers struct{}
	}
	out := make([]old, len(list))
	for i, n := range list {
		out[i] = old{Network: n}
	}
	return out
}

// serverVersion completes GET /version with the API's own numbers.
func serverVersion(v system.VersionResponse) system.VersionResponse {
	v.APIVersion, v.MinAPIVersion = MaxVersion, MinVersion
	v.Components = []system.ComponentVersion{{
		Name: "Engine", Version: v.Version,
		Details: map[string]string{
			"ApiVersion": MaxVersion, "MinAPIVersion": MinVersion, "Arch": v.Arch, "Os": v.Os, "GitCommit": v.GitCommit,
			"GoVersion": v.GoVersion, "KernelVersion": v.KernelVersion, "Experimental": fmt.Sprint(v.Experimental), "BuildTime": v.BuildTime,
		},
	}}
	return v
}

// engineFilters is f with one more filter, which a version implied.
func engineFilters(f engine.Filters, key, value string) engine.Filters {
	out := engine.Filters{key: {value}}
	for k, v := range f {
		out[k] = v
	}
	return out
}

// withStatus adds the fields of API 1.21 that containers' and images' events
// had beside Actor until 1.52; scripts still look for them.
func withStatus(m events.Message) any {
	type old struct {
		Status string `json:"status,omitempty"`
		ID     string `json:"id,omitempty"`
		From   string `json:"from,omitempty"`
		events.Message
	}
	o := old{Message: m}
	switch m.Type {
	case events.ContainerEventType:
		o.Status, o.ID, o.From = string(m.Action), m.Actor.ID, m.Actor.Attributes["image"]
	case events.ImageEventType:
		o.Status, o.ID = string(m.Action), m.Actor.ID
	}
	return o
}
