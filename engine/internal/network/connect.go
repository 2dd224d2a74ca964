package network

import (
	"context"
	"errors"
	"fmt"

	"github.com/moby/moby/api/types/network"

	"github.com/minke-os/minke/internal/errdef"
)

// Connect adds a running container to another network. Joined is what the
// container has then; its Resolv is nil unless /etc/resolv.conf is another now.
// On an error nothing is changed.
func (h *Host) Connect(_ context.Context, containerID string, ep Endpoint) (_ Joined, err error) {
	m, pid, err := h.memberOf(containerID)
	if err != nil {
		return Joined{}, err
	}
	h.mu.Lock()
	err = h.reserveLeg(m, ep)
	n, l := h.networks[ep.Network], m.endpoints[ep.Network]
	h.mu.Unlock()
	if err != nil {
		return Joined{}, err
	}
	ns, err := openNamespace(pid)
	if err == nil {
		defer ns.close()
		err = h.plug(ns, n, l)
	}
	h.at("network-connect")
	resolver := m.resolver
	if err == nil {
		err = h.resettle(m, ns)
	}
	if err != nil {
		err = fmt.Errorf("connect to network %s: %w", n.Name, err)
		return Joined{}, errors.Join(err, h.drop(m, ns, n, l))
	}
	out := h.joined(m)
	if m.resolver == resolver {
		out.Resolv = nil
	}
	return out, nil
}

func (h *Host) memberOf(containerID string) (*member, int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m, ok := h.members[containerID]
	if !ok {
		return nil, 0, errdef.Conflict.Errorf("container %s is not running", containerID)
	}
	return m, m.sandbox.Pid, nil
}

// Disconnect takes a running container from a network. Joined is what it has
// left.
func (h *Host) Disconnect(_ context.Context, containerID, networkID string) (Joined, error) {
	m, pid, err := h.memberOf(containerID)
	if err != nil {
		return Joined{}, err
	}
	h.mu.Lock()
	l, ok := m.endpoints[networkID]
	n := h.networks[networkID]
	h.mu.Unlock()
	if !ok || n == nil {
		return h.joined(m), nil
	}
	var ns *namespace
	if n.wired() {
		if ns, err = openNamespace(pid); err != nil {
			return Joined{}, err
		}
		defer ns.close()
	}
	if err := h.drop(m, ns, n, l); err != nil {
		return Joined{}, err
	}
	out := h.joined(m)
	out.Resolv = nil
	return out, nil
}

// drop removes an endpoint: first what leads there, then the interface, and
// its address last.
func (h *Host) drop(m *member, ns *namespace, n *state, l *leg) error {
	h.mu.Lock()
	delete(m.endpoints, n.ID)
	h.mu.Unlock()
	var errs []error
	if ns != nil && n.wired() {
		errs = append(errs, ns.unplug(l), h.resettle(m, ns))
	}
	h.at("network-disconnect")
	h.mu.Lock()
	defer h.mu.Unlock()
	h.releaseLegLocked(n, l)
	return errors.Join(errs...)
}

// resettle makes routes, names and published ports right after a container's
// networks have changed.
func (h *Host) resettle(m *member, ns *namespace) error {
	was, now := m.exits, h.exitsOf(m)
	if err := ns.setDefaults(was, now); err != nil {
		return err
	}
	h.mu.Lock()
	m.exits = now
	h.mu.Unlock()
	if m.resolver == nil && h.needsResolver(m) {
		r, err := h.serveNames(m, ns)
		if err != nil {
			return fmt.Errorf("name service: %w", err)
		}
		h.mu.Lock()
		m.resolver = r
		h.mu.Unlock()
	}
	if was.in4 == now.in4 && was.in6 == now.in6 && was.to4 == now.to4 && was.to6 == now.to6 {
		return nil
	}
	ports := m.sandbox.Ports
	if published := m.ports(); len(published) > 0 {
		ports = published // a port that was any stays what it is
	}
	if err := h.unpublish(m); err != nil {
		return err
	}
	return h.publish(m, ports, false)
}

// ports are the published ports as docker ps shows them.
func (m *member) ports() network.PortMap {
	out := network.PortMap{}
	for _, p := range m.published {
		if p.direct {
			if _, there := out[p.port]; !there {
				out[p.port] = nil
			}
			continue
		}
		out[p.port] = append(out[p.port], p.binding())
	}
	return out
}

// Rename has others find a container by another name. It returns the endpoints
// as they are then; nil if the container has not joined.
func (h *Host) Rename(containerID, name string) map[string]*network.EndpointSettings {
	h.mu.Lock()
	m, ok := h.members[containerID]
	if !ok {
		h.mu.Unlock()
		return nil
	}
	m.sandbox.Name = name
	for id, l := range m.endpoints {
		n := h.networks[id]
		if n == nil || !n.wired() {
			continue
		}
		l.names = namesOf(m.sandbox, n, l.settings)
		l.settings.DNSNames = l.names
		for _, p := range l.prefixes() {
			n.taken[p.Addr()] = name
		}
	}
	for _, p := range m.published {
		if !p.direct {
			h.ports[p.key] = name
		}
	}
	h.mu.Unlock()
	return h.joined(m).Endpoints
}
