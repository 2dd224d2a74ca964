package engine

import (
	"context"
	"maps"
	"slices"

	"github.com/moby/moby/api/types/events"
	nettypes "github.com/moby/moby/api/types/network"

	"github.com/minke-os/minke/engine/internal/network"
	"github.com/minke-os/minke/internal/errdef"
)

// NetworkOptions say what the host's networks look like.
type NetworkOptions = network.Options

// An AddressPool is a range of addresses for networks that name no subnet.
type AddressPool = network.Pool

// CheckNetwork says what is wrong with the options.
func CheckNetwork(o NetworkOptions) error { return o.Check() }

// sandbox describes the container to package network. ok is false for one
// without a network namespace of its own.
func (e *Engine) sandbox(r *record, pid int) (s network.Sandbox, ok bool) {
	if r.Host.NetworkMode.IsHost() || r.Host.NetworkMode.IsContainer() {
		return s, false
	}
	s = network.Sandbox{
		ContainerID: r.ID, Name: r.Name, Hostname: r.Config.Hostname, Pid: pid, Ports: wantedPorts(r),
		DNS: e.cfg.Defaults.dns(r.Host),
	}
	// The network that was named first is the default route's, then by name.
	for _, name := range sortedKeys(r.Networks) {
		ep := network.Endpoint{Network: r.Networks[name].NetworkID, Settings: r.Networks[name]}
		if name == string(r.Host.NetworkMode) {
			s.Endpoints = slices.Insert(s.Endpoints, 0, ep)
			continue
		}
		s.Endpoints = append(s.Endpoints, ep)
	}
	return s, true
}

// wantedPorts are the bindings asked for, and with -P any port for the rest.
func wantedPorts(r *record) nettypes.PortMap {
	ports := maps.Clone(r.Host.PortBindings)
	if !r.Host.PublishAllPorts {
		return ports
	}
	if ports == nil {
		ports = nettypes.PortMap{}
	}
	for p := range r.Config.ExposedPorts {
		if len(ports[p]) == 0 {
			ports[p] = []nettypes.PortBinding{{}}
		}
	}
	return ports
}

// joinNetwork connects a container that is about to run.
func (e *Engine) joinNetwork(ctx context.Context, c *Container, r *record, pid int) error {
	s, ok := e.sandbox(r, pid)
	if !ok {
		return nil
	}
	joined, err := e.net.Join(ctx, s)
	if err != nil {
		return err
	}
	return e.networkJoined(c, r, joined)
}

// findNetworks gives a container that is about to run the networks of the names
// that it has, where those were not there before or are others by now.
func (e *Engine) findNetworks(r *record) error {
	found := make(map[string]*nettypes.EndpointSettings, len(r.Networks))
	for name, ep := range r.Networks {
		n, err := e.net.Find(ep.NetworkID)
		if ep.NetworkID == "" || errdef.Is(err, errdef.NotFound) {
			n, err = e.net.Find(name)
		}
		switch {
		case errdef.Is(err, errdef.NotFound):
			return errdef.NotFound.Errorf("failed to set up container networking: %w", err)
		case err != nil:
			return err
		case n.ConfigOnly:
			return errdef.Forbidden.Errorf("network %s is config-only: containers cannot use it", name)
		}
		ep = ep.Copy()
		ep.NetworkID = n.ID
		found[n.Name] = ep
	}
	r.Networks = found
	return nil
}

// networkJoined records what the container got, and writes it where the
// container looks.
func (e *Engine) networkJoined(c *Container, r *record, joined network.Joined) error {
	c.mu.Lock()
	c.Networks, c.Ports = joined.Endpoints, joined.Ports
	*r = c.record
	c.mu.Unlock()
	if err := e.writeOwn(r.ID, resolvFile, joined.Resolv); err != nil {
		return err
	}
	if err := e.writeOwn(r.ID, hostsFile, append(hostsContent(r, &joined, e.cfg.Defaults.HostGateway), e.linkedHosts(r)...)); err != nil {
		return err
	}
	for name, ep := range joined.Endpoints {
		e.publishNetwork(events.ActionConnect, ep.NetworkID, name, e.driverOf(ep.NetworkID), map[string]string{"container": r.ID})
	}
	return nil
}

func (e *Engine) leaveNetwork(ctx context.Context, r *record) error {
	if _, ok := e.sandbox(r, 0); !ok {
		return nil
	}
	for name, ep := range r.Networks {
		e.publishNetwork(events.ActionDisconnect, ep.NetworkID, name, e.driverOf(ep.NetworkID), map[string]string{"container": r.ID})
	}
	return e.net.Leave(ctx, r.ID)
}

func (e *Engine) driverOf(id string) string {
	n, err := e.net.Find(id)
	if err != nil {
		return ""
	}
	return n.Driver
}

// NetworkCreate makes a network.
func (e *Engine) NetworkCreate(req nettypes.CreateRequest) (nettypes.CreateResponse, error) {
	n, warning, err := e.net.Create(context.Background(), req)
	if err != nil {
		return nettypes.CreateResponse{}, err
	}
	e.publishNetwork(events.ActionCreate, n.ID, n.Name, n.Driver, nil)
	return nettypes.CreateResponse{ID: n.ID, Warning: warning}, nil
}

// NetworkInspect finds a network by ID, name or unique ID prefix.
func (e *Engine) NetworkInspect(name string) (nettypes.Inspect, error) {
	n, err := e.net.Find(name)
	if err != nil {
		return nettypes.Inspect{}, err
	}
	members := e.net.Members(n.ID)
	if n.Driver == nettypes.NetworkHost {
		members = e.hostMembers()
	}
	return nettypes.Inspect{Network: n, Containers: members}, nil
}

func (e *Engine) hostMembers() map[string]nettypes.EndpointResource {
	out := map[string]nettypes.EndpointResource{}
	for _, c := range e.all() {
		if r := c.snapshot(); r.runs() && r.Host.NetworkMode.IsHost() {
			out[r.ID] = nettypes.EndpointResource{Name: r.Name}
		}
	}
	return out
}

// NetworkList lists networks.
func (e *Engine) NetworkList(f Filters) ([]nettypes.Network, error) {
	if err := f.check("dangling", "driver", "id", "label", "name", "scope", "type"); err != nil {
		return nil, err
	}
	dangling, asked, err := f.is("dangling")
	if err != nil {
		return nil, err
	}
	out := []nettypes.Network{}
	for _, n := range e.net.Networks() {
		kind := "custom"
		if predefined(n.Name) {
			kind = "builtin"
		}
		if !f.match("name", n.Name) || !f.prefix("id", n.ID) || !f.any("driver", n.Driver) || !f.any("scope", n.Scope) ||
			!f.any("type", kind) || !f.Labels("label", n.Labels) || asked && dangling != (kind == "custom" && len(e.networkUsers(n.ID)) == 0) {
			continue
		}
		out = append(out, n)
	}
	return out, nil
}

func predefined(name string) bool {
	return name == nettypes.NetworkBridge || name == nettypes.NetworkHost || name == nettypes.NetworkNone
}

// networkUsers are the names of running containers on a network.
func (e *Engine) networkUsers(id string) (names []string) {
	for _, m := range e.net.Members(id) {
		names = append(names, m.Name)
	}
	slices.Sort(names)
	return names
}

// NetworkRemove deletes a network that no running container uses.
func (e *Engine) NetworkRemove(ctx context.Context, name string) error {
	n, err := e.net.Find(name)
	if err != nil {
		return err
	}
	if err := e.net.Remove(ctx, n.ID); err != nil {
		return err
	}
	e.publishNetwork(events.ActionDestroy, n.ID, n.Name, n.Driver, nil)
	return nil
}

// NetworkPrune removes networks that no container, running or not, uses, but
// no configurations of others.
func (e *Engine) NetworkPrune(ctx context.Context, f Filters) (nettypes.PruneReport, error) {
	out := nettypes.PruneReport{NetworksDeleted: []string{}}
	if err := f.check("until", "label", "label!"); err != nil {
		return out, err
	}
	until, err := f.until()
	if err != nil {
		return out, err
	}
	used := map[string]bool{}
	for _, c := range e.all() {
		for _, ep := range c.snapshot().Networks {
			used[ep.NetworkID] = true
		}
	}
	for _, n := range e.net.Networks() {
		if predefined(n.Name) || n.ConfigOnly || used[n.ID] || !f.Labels("label", n.Labels) || !f.unlabelled("label!", n.Labels) || !until.IsZero() && n.Created.After(until) {
			continue
		}
		err := e.NetworkRemove(ctx, n.ID)
		if errdef.Is(err, errdef.Forbidden) {
			continue // somebody uses it by now
		}
		if err != nil {
			return out, err
		}
		out.NetworksDeleted = append(out.NetworksDeleted, n.Name)
	}
	e.publishPrune(events.NetworkEventType, 0)
	return out, nil
}

// NetworkConnect adds a container, running or not, to a network.
func (e *Engine) NetworkConnect(ctx context.Context, name string, req nettypes.ConnectRequest) error {
	n, err := e.net.Find(name)
	if err != nil {
		return err
	}
	c, err := e.find(req.Container)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	r := c.snapshot()
	switch {
	case r.Host.NetworkMode.IsHost():
		return errdef.Invalid.Errorf("container cannot be connected to host network - container sharing the network namespace of the host cannot be connected to other networks")
	case r.Host.NetworkMode.IsContainer():
		return errdef.Invalid.Errorf("container sharing network namespace with another container or host cannot be connected to any other network")
	case n.ConfigOnly:
		return errdef.Forbidden.Errorf("cannot connect container to network %s: it is config-only", n.Name)
	case n.Name == nettypes.NetworkHost || n.Name == nettypes.NetworkNone:
		return errdef.Forbidden.Errorf("container cannot be connected to network %s while it runs on others", n.Name)
	}
	if _, joined := r.Networks[n.Name]; joined && r.runs() {
		return errdef.Forbidden.Errorf("endpoint with name %s already exists in network %s", r.Name, n.Name)
	}
	settings := &nettypes.EndpointSettings{}
	if req.EndpointConfig != nil {
		settings = req.EndpointConfig.Copy()
	}
	if err := network.CheckEndpoint(n, settings); err != nil {
		return err
	}
	settings.NetworkID = n.ID
	networks, ports := merged(r.Networks, map[string]*nettypes.EndpointSettings{n.Name: settings}), r.Ports
	if r.runs() {
		joined, err := e.net.Connect(ctx, r.ID, network.Endpoint{Network: n.ID, Settings: settings})
		if err != nil {
			return err
		}
		networks, ports = joined.Endpoints, joined.Ports
		if joined.Resolv != nil {
			if err := e.writeOwn(r.ID, resolvFile, joined.Resolv); err != nil {
				return err
			}
		}
	}
	r = e.change(c, func(r *record) {
		r.Networks, r.Ports = networks, ports
		delete(r.Networks, nettypes.NetworkNone)
	})
	e.publishNetwork(events.ActionConnect, n.ID, n.Name, n.Driver, map[string]string{"container": r.ID})
	return e.rewriteHosts(&r)
}

// NetworkDisconnect takes a container from a network. With force a container
// that is not there is no error.
func (e *Engine) NetworkDisconnect(ctx context.Context, name string, req nettypes.DisconnectRequest) error {
	n, err := e.net.Find(name)
	if err != nil {
		return err
	}
	c, err := e.find(req.Container)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	r := c.snapshot()
	if _, ok := r.Networks[n.Name]; !ok {
		if req.Force {
			return nil
		}
		return errdef.Forbidden.Errorf("container %s is not connected to network %s", r.ID, n.Name)
	}
	networks, ports := maps.Clone(r.Networks), r.Ports
	delete(networks, n.Name)
	if r.runs() {
		joined, err := e.net.Disconnect(ctx, c.ID, n.ID)
		if err != nil {
			return err
		}
		networks, ports = joined.Endpoints, joined.Ports
	}
	r = e.change(c, func(r *record) { r.Networks, r.Ports = networks, ports })
	e.publishNetwork(events.ActionDisconnect, n.ID, n.Name, n.Driver, map[string]string{"container": r.ID})
	return e.rewriteHosts(&r)
}

func (e *Engine) rewriteHosts(r *record) error {
	if !r.runs() {
		return nil
	}
	hosts := hostsContent(r, &network.Joined{Endpoints: r.Networks}, e.cfg.Defaults.HostGateway)
	return e.writeOwn(r.ID, hostsFile, append(hosts, e.linkedHosts(r)...))
}
