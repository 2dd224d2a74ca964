// Package solo runs containers without a monitor, as callers of an OCI runtime
// on the command line want it: whoever calls create has the container's first
// process as a child of its own, or of its subreaper, when the command has
// ended, and collects it.
//
//	<root>/<id>/state.json   version 1; written when the init is ready, by rename
//	<root>/<id>/start.sock   where the init waits to be started; its absence says it was
//	<root>/seccomp/<random>  compiled filters
//
// What a container does now is always asked of the kernel: the process by its
// ID and start time, so that a number used again is not taken for it, and the
// cgroup. A command that dies leaves at most a directory without state.json,
// which delete removes. Commands may run at the same time; creating an ID is
// decided by making its directory.
package solo

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/durable"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime/internal/cgroup"
	"github.com/minke-os/minke/runtime/internal/wire"
)

// Root is the directory of all containers.
type Root string

// A Container is one that exists.
type Container struct {
	root Root
	saved
	group *cgroup.Group
}

// saved is the state file.
type saved struct {
	Version     int               `json:"version"`
	ID          string            `json:"id"`
	Pid         int               `json:"pid"`
	Started     string            `json:"started"` // by the kernel's clock, as in /proc/<pid>/stat
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Cgroups     map[string]string `json:"cgroups"`
	Launch      *wire.Launch      `json:"launch"`
	Hooks       *specs.Hooks      `json:"hooks,omitempty"`
}

const savedVersion = 1

func (r Root) dir(id string) string { return filepath.Join(string(r), id) }

// Find returns the container, or an error of kind errdef.NotFound.
func (r Root) Find(id string) (*Container, error) {
	if id == "" || strings.ContainsAny(id, "/\x00") || id[0] == '.' {
		return nil, errdef.Invalid.Errorf("container ID %q is not a file name", id)
	}
	c := &Container{root: r}
	data, err := os.ReadFile(filepath.Join(r.dir(id), "state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errdef.NotFound.Errorf("container %s does not exist", id)
	}
	if err == nil {
		err = json.Unmarshal(data, &c.saved)
	}
	if err == nil && (c.Version != savedVersion || c.Launch == nil) {
		err = fmt.Errorf("it is of version %d, want %d", c.Version, savedVersion)
	}
	if err != nil {
		return nil, fmt.Errorf("read the state of container %s: %w", id, err)
	}
	c.group = &cgroup.Group{Paths: c.Cgroups}
	return c, nil
}

// List returns all containers, by name.
func (r Root) List() (all []*Container, err error) {
	files, err := filepath.Glob(filepath.Join(string(r), "*", "state.json"))
	for _, f := range files {
		c, err := r.Find(filepath.Base(filepath.Dir(f)))
		if errdef.Is(err, errdef.NotFound) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, err
}

func (c *Container) path(name string) string { return filepath.Join(c.root.dir(c.ID), name) }

func (c *Container) save() error {
	data, err := json.Marshal(c.saved)
	if err != nil {
		return err
	}
	return durable.ReplaceFile(c.path("state.json"), data, 0o600)
}

// State is what the kernel says, in the specification's words.
func (c *Container) State() specs.State {
	s := specs.State{Version: specs.Version, ID: c.ID, Bundle: c.Bundle, Annotations: c.Annotations, Status: c.status()}
	if s.Status != specs.StateStopped {
		s.Pid = c.Pid
	}
	return s
}

// Paused is a status that the specification does not have and runc does.
const Paused specs.ContainerState = "paused"

func (c *Container) status() specs.ContainerState {
	if startTime(c.Pid) != c.Started {
		return specs.StateStopped
	}
	if _, err := os.Lstat(c.path("start.sock")); err == nil {
		return specs.StateCreated
	}
	if c.group.Frozen() {
		return Paused
	}
	return specs.StateRunning
}

// startTime is when the process began, "" if it has ended; one that only waits
// to be collected has.
func startTime(pid int) string {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	// The name, in parentheses, may contain anything.
	f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return ""
	}
	return f[19]
}

// pidfd opens the first process, or fails if it has ended.
func (c *Container) pidfd() (int, error) {
	fd, err := unix.PidfdOpen(c.Pid, 0)
	if err != nil || startTime(c.Pid) != c.Started {
		if err == nil {
			unix.Close(fd)
		}
		return -1, errdef.Conflict.Errorf("container not running") // words that containerd looks for
	}
	return fd, nil
}

// Kill sends a signal to the first process or to all.
func (c *Container) Kill(sig unix.Signal, all bool) error {
	fd, err := c.pidfd()
	if err != nil {
		if all { // those that outlived it
			return c.group.Signal(sig)
		}
		return err
	}
	defer unix.Close(fd)
	if all || sig == unix.SIGKILL && !c.ownsPids() {
		if err := c.group.Signal(sig); err != nil {
			return fmt.Errorf("kill all of container %s: %w", c.ID, err)
		}
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("send %v to container %s: %w", sig, c.ID, err)
	}
	if sig == unix.SIGKILL && c.group.Frozen() {
		return c.group.Thaw() // version 1 lets nobody die frozen
	}
	return nil
}

func (c *Container) ownsPids() bool {
	for _, ns := range c.Launch.Namespaces {
		if ns.Type == specs.PIDNamespace {
			return ns.Path == ""
		}
	}
	return false
}

// Pause freezes all processes.
func (c *Container) Pause() error {
	if s := c.status(); s != specs.StateRunning {
		return errdef.Conflict.Errorf("container %s is %s, not running", c.ID, s)
	}
	return c.group.Freeze()
}

// Resume thaws what Pause froze.
func (c *Container) Resume() error {
	if s := c.status(); s != Paused {
		return errdef.Conflict.Errorf("container %s is %s, not paused", c.ID, s)
	}
	return c.group.Thaw()
}

// Update changes limits; zero fields stay as they are.
func (c *Container) Update(r *specs.LinuxResources) (warnings []string, err error) {
	if c.status() == specs.StateStopped {
		return nil, errdef.Conflict.Errorf("container not running")
	}
	return c.group.Set(r)
}

// Pids are those of all its processes.
func (c *Container) Pids() ([]int, error) { return c.group.Pids() }

// Usage is what it has used.
func (c *Container) Usage() cgroup.Usage { return c.group.Usage() }

// Delete removes a container that has ended, or was not started; with force
// any. Its poststop hooks run last; they cannot make it fail, as the
// specification says, and what they say is returned as a warning.
func (c *Container) Delete(force bool) (warning error, err error) {
	switch s := c.status(); s {
	case specs.StateRunning, Paused:
		if !force {
			return nil, errdef.Conflict.Errorf("cannot delete container %s that is not stopped: %s", c.ID, s)
		}
		fallthrough
	case specs.StateCreated:
		if err := c.Kill(unix.SIGKILL, true); err != nil && !errdef.Is(err, errdef.Conflict) {
			return nil, err
		}
	}
	if err := c.group.Kill(); err != nil {
		return nil, fmt.Errorf("kill what is left of container %s: %w", c.ID, err)
	}
	for deadline := time.Now().Add(10 * time.Second); startTime(c.Pid) == c.Started; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return nil, errdef.Busy.Errorf("container %s does not end though it was killed", c.ID)
		}
	}
	if err := c.group.Remove(); err != nil {
		return nil, fmt.Errorf("container %s: %w", c.ID, err)
	}
	if err := os.RemoveAll(c.root.dir(c.ID)); err != nil {
		return nil, err
	}
	if c.Hooks != nil {
		s := c.State()
		s.Status, s.Pid = specs.StateStopped, 0
		warning = hookList(c.Hooks.Poststop).Run(&s, (*exec.Cmd).Run)
	}
	return warning, nil
}

// RemoveBroken removes what a create that was killed left of an ID.
func (r Root) RemoveBroken(id string) error { return os.RemoveAll(r.dir(id)) }
