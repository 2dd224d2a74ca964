package monitor

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/minke-os/minke/internal/durable"
	"github.com/minke-os/minke/runtime/internal/cgroup"
	"github.com/minke-os/minke/runtime/internal/wire"
)

// saved is a container's state file, for the next monitor. The directory is
// gone after a reboot, and so are the containers.
type saved struct {
	Version int               `json:"version"`
	ID      string            `json:"id"`
	Pid     int               `json:"pid"`
	Status  string            `json:"status"`
	Exit    *wire.Exit        `json:"exit,omitempty"`
	Drained bool              `json:"drained,omitempty"` // and all its output is in the log
	Cgroups map[string]string `json:"cgroups"`
	Launch  *wire.Launch      `json:"launch"`
}

const savedVersion = 1

func (m *Monitor) stateDir() string { return filepath.Join(m.dir, "containers") }

func (c *container) statePath() string { return filepath.Join(c.m.stateDir(), c.id+".json") }

// saveLocked writes the state file.
func (c *container) saveLocked() error {
	data, err := json.Marshal(saved{
		Version: savedVersion, ID: c.id, Pid: c.pid, Status: c.status,
		Exit: c.exit, Drained: c.isDrained, Cgroups: c.group.Paths, Launch: c.launch,
	})
	if err != nil {
		return err
	}
	return durable.ReplaceFile(c.statePath(), data, 0o600)
}

// save is saveLocked where nobody can be told of a failure: the next monitor
// will then find an older state.
func (c *container) save() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.saveLocked()
}

// load reads what an earlier monitor left. Containers that had ended are as
// they were; the others are orphans until a client brings their handles or
// says that nobody has them. A file that cannot be read is set aside.
func (m *Monitor) load() error {
	if err := os.MkdirAll(m.stateDir(), 0o700); err != nil {
		return err
	}
	if err := durable.RemoveLeftovers(m.stateDir()); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(m.stateDir(), "*.json"))
	if err != nil {
		return err
	}
	for _, path := range files {
		s, err := readSaved(path)
		if err != nil {
			durable.Rename(path, strings.TrimSuffix(path, ".json")+".broken")
			continue
		}
		c := m.newContainer(s.ID, s.Launch)
		c.pid, c.status, c.exit, c.group = s.Pid, s.Status, s.Exit, &cgroup.Group{Paths: s.Cgroups}
		if s.Drained {
			c.isDrained = true
			close(c.booted)
			close(c.stopped)
			close(c.drained)
		} else {
			c.orphan, c.settled = s, make(chan struct{})
		}
		m.containers[c.id] = c
	}
	return nil
}

func readSaved(path string) (*saved, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var s saved
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, err
	}
	if s.Version != savedVersion || s.Launch == nil || s.ID+".json" != filepath.Base(path) {
		return nil, errors.New("not a state of this version")
	}
	return &s, nil
}

func (c *container) removeState() error {
	err := os.Remove(c.statePath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
