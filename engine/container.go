package engine

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/minke-os/minke/engine/internal/device"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// A record is what is kept of a container on disk. Fields are only added.
type record struct {
	ID      string
	Name    string
	Created time.Time
	Image   oci.ImageID
	Layer   oci.ChainID // the image's top layer, so that a container outlives its image's record
	Path    string
	Args    []string

	Config   *container.Config
	Host     *container.HostConfig
	Networks map[string]*network.EndpointSettings // by network name: what was asked for, and got
	Ports    network.PortMap                      // as published by the last start
	Mounts   []container.MountPoint
	// ImageMounts are the top layers of images that it mounts, by target.
	ImageMounts map[string]oci.ChainID `json:",omitempty"`

	// Build is set in containers of RUN instructions, which end with the
	// build and so with this process.
	Build bool `json:",omitempty"`

	// Plugged are the devices that it has now of those that come and go.
	Plugged []device.Node `json:",omitempty"`

	Running    bool // also while waiting for a restart
	Restarting bool
	Paused     bool
	Removing   bool // a removal was begun; Open finishes it
	// RemovingVolumes is set if it is to take the anonymous volumes along.
	RemovingVolumes bool
	Dead            bool // a removal failed
	OOMKilled       bool
	Pid             int
	ExitCode        int
	Error           string
	StartedAt       time.Time
	FinishedAt      time.Time
	RestartCount    int
	Health          container.HealthStatus // "" without a check
	// StoppedByUser keeps restart policies from acting after stop and kill.
	StoppedByUser bool
}

// A Container is a record and what runs of it.
type Container struct {
	// op is held over a whole start, removal, rename or exit handling, so
	// that only one of them goes on at a time. Taken before mu.
	op sync.Mutex

	mu sync.Mutex
	record
	exits    int           // how often it ended since Open, for those who wait for the next
	removed  bool          // the record is gone
	changed  chan struct{} // closed and replaced at every change of state
	pending  []*Attachment // attached before start
	backoff  time.Duration // before the next restart
	awaken   chan struct{} // closed to give up waiting for a restart
	health   *health       // nil without a health check, or before the first start
	execIDs  []string
	kept     bool          // a restart goes on: its end is no reason to remove it
	release  func()        // gives up the image's layers
	extras   extras        // for a RUN instruction
	logsDone chan struct{} // closed when the running container has written its last log line
}

func newContainer(r record) *Container {
	c := &Container{record: r, changed: make(chan struct{}), logsDone: make(chan struct{})}
	if !r.Running {
		close(c.logsDone)
	}
	return c
}

// notifyLocked wakes those who wait for a change of state.
func (c *Container) notifyLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// snapshot is a copy of the record. What its pointers lead to is replaced, not
// changed, so it may be read without the lock.
func (c *Container) snapshot() record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.record
}

// runs reports whether a process of the container lives.
func (r *record) runs() bool { return r.Running && !r.Restarting }

// status is Docker's one-word state.
func (r *record) status() container.ContainerState {
	switch {
	case r.Dead:
		return container.StateDead
	case r.Removing:
		return container.StateRemoving
	case r.Paused:
		return container.StatePaused
	case r.Restarting:
		return container.StateRestarting
	case r.Running:
		return container.StateRunning
	case r.StartedAt.IsZero():
		return container.StateCreated
	}
	return container.StateExited
}

// describe is the STATUS column of docker ps.
func (r *record) describe(h *container.Health, now time.Time) string {
	ago := func(t time.Time) string { return units.HumanDuration(now.Sub(t)) }
	switch r.status() {
	case container.StateDead:
		return "Dead"
	case container.StateRemoving:
		return "Removal In Progress"
	case container.StateCreated:
		return "Created"
	case container.StateRestarting:
		return fmt.Sprintf("Restarting (%d) %s ago", r.ExitCode, ago(r.FinishedAt))
	case container.StatePaused:
		return "Up " + ago(r.StartedAt) + " (Paused)"
	case container.StateRunning:
		s := "Up " + ago(r.StartedAt)
		switch {
		case h == nil:
		case h.Status == container.Starting:
			s += " (health: starting)"
		case h.Status != container.NoHealthcheck:
			s += " (" + string(h.Status) + ")"
		}
		return s
	}
	return fmt.Sprintf("Exited (%d) %s ago", r.ExitCode, ago(r.FinishedAt))
}

// find is the container of a full ID, name, or unique ID prefix, in this
// order, as in Docker.
func (e *Engine) find(name string) (*Container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c, ok := e.containers[name]; ok {
		return c, nil
	}
	if id, ok := e.names[strings.TrimPrefix(name, "/")]; ok {
		return e.containers[id], nil
	}
	var found *Container
	if name != "" {
		for id, c := range e.containers {
			if !strings.HasPrefix(id, name) {
				continue
			}
			if found != nil {
				return nil, errdef.Invalid.Errorf("multiple IDs found with provided prefix: %s", name)
			}
			found = c
		}
	}
	if found == nil {
		return nil, errdef.NotFound.Errorf("No such container: %s", name)
	}
	return found, nil
}

// findRunning is find for what needs a live process.
func (e *Engine) findRunning(name string) (*Container, record, error) {
	c, err := e.find(name)
	if err != nil {
		return nil, record{}, err
	}
	r := c.snapshot()
	switch {
	case r.Restarting:
		return nil, r, errdef.Conflict.Errorf("container %s is restarting, wait until the container is running", r.ID)
	case !r.Running:
		return nil, r, errdef.Conflict.Errorf("container %s is not running", r.ID)
	}
	return c, r, nil
}

// all is every container, in no order.
func (e *Engine) all() []*Container {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]*Container, 0, len(e.containers))
	for _, c := range e.containers {
		out = append(out, c)
	}
	return out
}
