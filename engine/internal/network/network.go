// Package network connects containers to networks and to the outside.
package network

import (
	"context"
	"log/slog"
	"net/netip"

	"github.com/moby/moby/api/types/network"
	"go.etcd.io/bbolt"
)

// Options say what the host's networks look like. The zero value works.
type Options struct {
	Bridge string       // of the network "bridge"; default minke0. An existing one is used, but never changed or removed
	BIP    netip.Prefix // address of that bridge
	Logger *slog.Logger
}

// A Sandbox is what a container wants of its network namespace.
type Sandbox struct {
	ContainerID string
	Name        string // container's name, an alias on user-defined networks
	Hostname    string
	Pid         int // a process in the network namespace
	Endpoints   []Endpoint
	Ports       network.PortMap // wanted; host port "" or "0" means any
	DNS         DNS
}

// DNS is what the container wants in place of the host's settings.
type DNS struct {
	Servers []netip.Addr
	Search  []string
	Options []string
}

// An Endpoint is one leg of a container. Settings that come from an earlier
// start (addresses) are used again where they are free.
type Endpoint struct {
	Network  string // ID
	Settings *network.EndpointSettings
}

// Joined is what a container got.
type Joined struct {
	Endpoints map[string]*network.EndpointSettings // by network name, complete
	Ports     network.PortMap                      // as published
	Resolv    []byte                               // content of /etc/resolv.conf
}

type host interface {
	// Close stops DNS service and port listeners. Networks stay.
	Close() error
	// Cleanup removes bridges, rules and tables of ours. Nothing may be joined.
	Cleanup(ctx context.Context) error

	Create(ctx context.Context, r network.CreateRequest) (n network.Network, warning string, err error)
	Networks() []network.Network
	// Find takes an ID, name or unique ID prefix, in this order.
	Find(name string) (network.Network, error)
	// Remove fails with errdef.Conflict while containers are joined and
	// errdef.Forbidden for predefined networks.
	Remove(ctx context.Context, id string) error
	// Members lists who is joined to a network, by container ID.
	Members(id string) map[string]network.EndpointResource

	// Join gives a container its interfaces, addresses, routes, names and
	// published ports. On an error nothing is left.
	Join(ctx context.Context, s Sandbox) (Joined, error)
	// Rejoin takes up a running container after a restart of the daemon: what
	// is there is kept, what is missing (DNS, rules, port listeners) is made.
	Rejoin(ctx context.Context, s Sandbox) (Joined, error)
	// Reconcile removes what belongs to no container that joined or rejoined.
	Reconcile(ctx context.Context) error
	// Leave gives back addresses and ports. The kernel removes interfaces
	// with the container's namespace.
	Leave(ctx context.Context, containerID string) error
	// Connect and Disconnect change a running container.
	Connect(ctx context.Context, s Sandbox, e Endpoint) (*network.EndpointSettings, error)
	Disconnect(ctx context.Context, containerID, networkID string) error
}

// Host is the container networking of this machine.
type Host struct{ host }

// Open reads the networks from db, makes the predefined ones, and removes what
// a crash left: addresses, rules and interfaces of containers that are not in
// use any more are gone once the engine has called Rejoin for those that are
// and then Reconcile.
func Open(ctx context.Context, db *bbolt.DB, o Options) (*Host, error) { panic("being written") }
