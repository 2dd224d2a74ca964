package engine

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"

	"github.com/minke-os/minke/engine/internal/device"
	enginenet "github.com/minke-os/minke/engine/internal/network"
	"github.com/minke-os/minke/engine/internal/spec"
	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

var containerNames = regexp.MustCompile(`^/?[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// ContainerCreate makes a container from an image; it does not run. On an
// error nothing is left, but for named volumes, which are the user's. An image
// of another platform than the one asked for, if any, is NotFound, whereupon
// clients pull.
func (e *Engine) ContainerCreate(ctx context.Context, name, platform string, req container.CreateRequest) (container.CreateResponse, error) {
	if req.Config == nil {
		return container.CreateResponse{}, errdef.Invalid.Errorf("config cannot be empty in order to create a container")
	}
	host := req.HostConfig
	if host == nil {
		host = &container.HostConfig{}
	}
	img, release, err := e.imageForContainer(req.Config.Image)
	if err != nil {
		return container.CreateResponse{}, err
	}
	// The container keeps its layers until it is removed.
	kept := false
	defer func() {
		if !kept {
			release()
		}
	}()
	if err := checkPlatform(req.Config.Image, img, platform); err != nil {
		return container.CreateResponse{}, err
	}
	cfg := withImageDefaults(*req.Config, img.Config.Config)
	if len(cfg.Entrypoint)+len(cfg.Cmd) == 0 {
		return container.CreateResponse{}, errdef.Invalid.Errorf("no command specified")
	}
	if err := checkConfig(&cfg); err != nil {
		return container.CreateResponse{}, err
	}
	if cfg.NetworkDisabled && (host.NetworkMode == "" || host.NetworkMode.IsDefault()) {
		host.NetworkMode = network.NetworkNone
	}
	if err := e.checkHostConfig(host); err != nil {
		return container.CreateResponse{}, err
	}
	switch {
	case cfg.Hostname != "" && host.NetworkMode.IsContainer():
		return container.CreateResponse{}, errdef.Invalid.Errorf("conflicting options: hostname and the network mode")
	case cfg.Hostname != "" && host.UTSMode.IsHost():
		return container.CreateResponse{}, errdef.Invalid.Errorf("conflicting options: hostname and the UTS mode")
	}
	if _, _, err := device.Wants(host.Devices, cfg.Labels); err != nil {
		return container.CreateResponse{}, err
	}
	argv := append(slices.Clone(cfg.Entrypoint), cfg.Cmd...)
	r := record{Image: img.ID, Layer: topLayer(img), Path: argv[0], Args: argv[1:], Config: &cfg, Host: host}
	if r.Networks, err = e.wantedNetworks(host, req.NetworkingConfig); err != nil {
		return container.CreateResponse{}, err
	}
	if err := e.create(&r, name, release); err != nil {
		return container.CreateResponse{}, err
	}
	kept = true
	return container.CreateResponse{ID: r.ID, Warnings: e.createWarnings(host)}, nil
}

// create makes the container that r describes, under name or one of our
// choice. It keeps release for the container's removal unless it fails.
func (e *Engine) create(r *record, name string, release func()) (err error) {
	r.ID, r.Created = newID(), time.Now().UTC()
	if r.Config.Hostname == "" && !r.Host.NetworkMode.IsHost() && !r.Host.UTSMode.IsHost() {
		r.Config.Hostname = r.ID[:12]
	}
	if r.Name, err = e.reserveName(name, r.ID); err != nil {
		return err
	}
	if err := e.createReserved(r, release); err != nil {
		e.releaseName(r.Name)
		return err
	}
	e.publish(events.ActionCreate, r, nil)
	return nil
}

// createReserved makes volumes, the directory and the record, or nothing.
func (e *Engine) createReserved(r *record, release func()) (err error) {
	dir := e.containerDir(r.ID)
	var made []string
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
			for _, v := range made {
				e.volumes.Remove(v)
			}
		}
	}()
	for _, d := range []string{dir, filepath.Join(dir, "upper"), filepath.Join(dir, "work")} {
		if err := os.Mkdir(d, 0o711); err != nil {
			return err
		}
	}
	// The container's / is the upper directory's own mode.
	if err := os.Chmod(filepath.Join(dir, "upper"), 0o755); err != nil {
		return err
	}
	e.at("create-directory")
	if r.Mounts, made, err = e.resolveMounts(r); err != nil {
		return err
	}
	e.at("create-volumes")
	releaseMounted, err := e.takeMountedImages(r)
	defer func() {
		if err != nil {
			releaseMounted()
		}
	}()
	if err != nil {
		return err
	}
	if err := e.populateVolumes(r); err != nil {
		return err
	}
	c := newContainer(*r)
	c.release = func() { release(); releaseMounted() }
	e.at("create-content")
	if err := e.saveLocked(c); err != nil { // nobody else has c yet
		return err
	}
	e.at("create-record")
	e.mu.Lock()
	e.containers[r.ID] = c
	e.mu.Unlock()
	return nil
}

// takeMountedImages finds the images that the container mounts and keeps their
// content until release, which works even with an error.
func (e *Engine) takeMountedImages(r *record) (release func(), err error) {
	var all []func()
	release = func() {
		for _, f := range all {
			f()
		}
	}
	for _, p := range r.Mounts {
		if p.Type != mount.TypeImage {
			continue
		}
		img, more, err := e.imageForContainer(p.Name)
		if err != nil {
			return release, err
		}
		all = append(all, more)
		if r.ImageMounts == nil {
			r.ImageMounts = map[string]oci.ChainID{}
		}
		r.ImageMounts[p.Destination] = topLayer(img)
	}
	return release, nil
}

// imageForContainer finds the image and keeps its content until release.
func (e *Engine) imageForContainer(name string) (store.Image, func(), error) {
	if name == "" {
		return store.Image{}, nil, errdef.Invalid.Errorf("no image specified: give the name of an image")
	}
	id, _, err := e.images.Resolve(name)
	if err != nil {
		return store.Image{}, nil, err
	}
	img, err := e.images.Image(id)
	if err != nil {
		return store.Image{}, nil, err
	}
	release, err := e.keepLayers(topLayer(img))
	return img, release, err
}

func checkPlatform(name string, img store.Image, want string) error {
	if want == "" {
		return nil
	}
	p, err := oci.ParsePlatform(want)
	if err != nil {
		return errdef.Invalid.Wrap(err)
	}
	c := img.Config
	if c.OS == p.OS && c.Architecture == p.Architecture && (p.Variant == "" || c.Variant == "" || c.Variant == p.Variant) {
		return nil
	}
	return errdef.NotFound.Errorf("image with reference %s was found but its platform (%s/%s) does not match the specified platform (%s)", name, c.OS, c.Architecture, want)
}

// withImageDefaults fills what the client left open from the image.
func withImageDefaults(c container.Config, img dockerspec.DockerOCIImageConfig) container.Config {
	c.Env = spec.MergeEnv(img.Env, c.Env)
	if len(c.Entrypoint) == 0 {
		if len(c.Cmd) == 0 {
			c.Cmd, c.ArgsEscaped = img.Cmd, img.ArgsEscaped
		}
		// A client resets the entrypoint with one empty word.
		c.Entrypoint = img.Entrypoint
	}
	if len(c.Entrypoint) == 1 && c.Entrypoint[0] == "" {
		c.Entrypoint = nil
	}
	if c.User == "" {
		c.User = img.User
	}
	if c.WorkingDir == "" {
		c.WorkingDir = img.WorkingDir
	}
	if c.WorkingDir != "" {
		c.WorkingDir = filepath.Clean(c.WorkingDir)
	}
	if c.StopSignal == "" {
		c.StopSignal = img.StopSignal
	}
	c.Healthcheck = mergeHealth(c.Healthcheck, img.Healthcheck)
	c.Labels = merged(img.Labels, c.Labels)
	c.Volumes = merged(img.Volumes, c.Volumes)
	ports := network.PortSet{}
	for p := range img.ExposedPorts {
		if port, err := network.ParsePort(p); err == nil {
			ports[port] = struct{}{}
		}
	}
	maps.Copy(ports, c.ExposedPorts)
	if len(ports) > 0 {
		c.ExposedPorts = ports
	}
	return c
}

func merged[V any](base, over map[string]V) map[string]V {
	out := make(map[string]V, len(base)+len(over))
	maps.Copy(out, base)
	maps.Copy(out, over)
	return out
}

// checkHostConfig refuses what cannot work, and settles names to IDs.
func (e *Engine) checkHostConfig(h *container.HostConfig) error {
	e.cfg.Defaults.settle(h)
	if err := checkResources(h.Resources); err != nil {
		return err
	}
	if err := checkHost(h); err != nil {
		return err
	}
	if err := container.ValidateRestartPolicy(h.RestartPolicy); err != nil {
		return errdef.Invalid.Wrap(err)
	}
	if h.RestartPolicy.Name == "" {
		h.RestartPolicy.Name = container.RestartPolicyDisabled
	}
	if h.AutoRemove && !h.RestartPolicy.IsNone() {
		return errdef.Invalid.Errorf("can't create 'AutoRemove' container with restart policy")
	}
	if _, err := spec.Capabilities(h); err != nil {
		return err
	}
	if _, err := spec.ParseSecurity(h); err != nil {
		return err
	}
	if h.NetworkMode == "" || h.NetworkMode.IsDefault() {
		h.NetworkMode = network.NetworkBridge
	}
	if !h.IpcMode.Valid() || !h.PidMode.Valid() || !h.UTSMode.Valid() || !h.CgroupnsMode.Valid() {
		return errdef.Invalid.Errorf("invalid IPC, PID, UTS or cgroup namespace mode; see docker run --help")
	}
	if err := checkUserNamespace(h, e.mapping(h)); err != nil {
		return err
	}
	if h.CgroupnsMode.IsEmpty() {
		h.CgroupnsMode = container.CgroupnsModeHost
		if cgroupV2() {
			h.CgroupnsMode = container.CgroupnsModePrivate
		}
	}
	if h.IpcMode.IsEmpty() {
		h.IpcMode = container.IPCModePrivate
	}
	if h.ShmSize < 0 {
		return errdef.Invalid.Errorf("SHM size can not be less than 0")
	}
	if h.ShmSize == 0 {
		h.ShmSize = spec.DefaultShmSize
	}
	if err := e.settleLog(&h.LogConfig); err != nil {
		return err
	}
	if err := e.settleRuntime(h); err != nil {
		return err
	}
	for port, bindings := range h.PortBindings {
		for _, b := range bindings {
			if _, err := network.ParsePortRange(b.HostPort); b.HostPort != "" && err != nil {
				return errdef.Invalid.Errorf("invalid port specification: %q for %s", b.HostPort, port)
			}
		}
	}
	if err := e.checkLinks(h); err != nil {
		return err
	}
	return e.settleNamespaces(h)
}

// settleNamespaces turns "container:web" into the container's ID, so that a
// rename does not matter.
func (e *Engine) settleNamespaces(h *container.HostConfig) error {
	settle := func(name string, set func(id string)) error {
		if name == "" {
			return nil
		}
		c, err := e.find(name)
		if err != nil {
			// No NotFound, which from create means that the image is to be pulled.
			return errdef.Invalid.Errorf("join the namespaces of another container: %w", err)
		}
		set("container:" + c.ID)
		return nil
	}
	if h.NetworkMode.IsContainer() {
		if len(h.PortBindings) > 0 {
			return errdef.Invalid.Errorf("conflicting options: port publishing and the container type network mode")
		}
		if err := settle(h.NetworkMode.ConnectedContainer(), func(id string) { h.NetworkMode = container.NetworkMode(id) }); err != nil {
			return err
		}
	}
	if err := settle(h.IpcMode.Container(), func(id string) { h.IpcMode = container.IpcMode(id) }); err != nil {
		return err
	}
	return settle(h.PidMode.Container(), func(id string) { h.PidMode = container.PidMode(id) })
}

// wantedNetworks are the endpoints to make, keyed by network name. A network
// need not be there before the start, as in Docker.
func (e *Engine) wantedNetworks(h *container.HostConfig, nc *network.NetworkingConfig) (map[string]*network.EndpointSettings, error) {
	out := map[string]*network.EndpointSettings{}
	if h.NetworkMode.IsContainer() {
		return out, nil
	}
	add := func(name string, s *network.EndpointSettings) error {
		n, err := e.net.Find(name)
		switch {
		case errdef.Is(err, errdef.NotFound):
			n.Name = name
		case err != nil:
			return err
		}
		if err := enginenet.CheckEndpoint(n, s); err != nil {
			return err
		}
		if s == nil {
			if s = out[n.Name]; s == nil {
				s = &network.EndpointSettings{}
			}
		}
		s = s.Copy()
		s.NetworkID = n.ID
		out[n.Name] = s
		return nil
	}
	if nc != nil {
		for name, s := range nc.EndpointsConfig {
			if name == network.NetworkDefault {
				name = network.NetworkBridge
			}
			if err := add(name, s); err != nil {
				return nil, err
			}
		}
	}
	return out, add(string(h.NetworkMode), nil)
}

// reserveName makes name, or one of our choice, the container's.
func (e *Engine) reserveName(name, id string) (string, error) {
	name = strings.TrimPrefix(name, "/")
	if name != "" && !containerNames.MatchString(name) {
		return "", errdef.Invalid.Errorf("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if name == "" {
		name = e.freeNameLocked(id)
	}
	if other, ok := e.names[name]; ok {
		return "", errdef.Conflict.Errorf("Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+name, other)
	}
	e.names[name] = id
	return name, nil
}

func (e *Engine) releaseName(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.names, name)
}

// freeNameLocked makes a name that is easy to say from the first bytes of id.
func (e *Engine) freeNameLocked(id string) string {
	var a, b int
	fmt.Sscanf(id, "%4x%4x", &a, &b)
	base := moods[a%len(moods)] + "_" + animals[b%len(animals)]
	name := base
	for n := 2; e.names[name] != ""; n++ {
		name = fmt.Sprintf("%s%d", base, n)
	}
	return name
}

var (
	moods = strings.Fields("able agile amber ample bold brave brisk bright calm clear clever cool coral deep eager fair fast fine fleet " +
		"free fresh gentle glad golden good grand happy hardy icy jolly keen kind lively loud lucky lunar mellow merry mild misty neat " +
		"nimble noble patient polar proud quick quiet rapid salty sharp shiny silent silver sleek smart snowy solar steady still stormy " +
		"strong sunny swift tidal tidy true vast warm wavy wild wise witty zesty")
	animals = strings.Fields("auk barnacle beluga blenny bonito bream capelin clam cod conch copepod coral cormorant crab cuttlefish dab " +
		"dolphin dugong eel eider fulmar gannet garfish goby grayling grouse guillemot gull gurnard haddock hake halibut herring kelp " +
		"kittiwake krill lamprey limpet ling lobster lugworm mackerel manatee marlin minke mullet mussel narwhal nautilus octopus orca " +
		"osprey otter oyster penguin petrel pike plaice plankton plover pollock porpoise prawn puffin ray razorbill remora rorqual salmon " +
		"sardine scallop seal shark shrimp skate skua sole sprat squid starfish sturgeon swordfish tern trout tuna turbot turtle urchin walrus whelk whiting wrasse")
)
