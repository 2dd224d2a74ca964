// Package cdi finds devices of the Container Device Interface: files in which a
// vendor says what a container must get to use a device (nodes, mounts,
// environment, hooks), and applies them to an OCI configuration.
//
// Format: github.com/cncf-tags/container-device-interface, SPEC.md, versions up
// to 1.0. A device is named vendor.com/class=name. Files are *.json and *.yaml
// in a list of directories; what a later directory says of a device wins, and
// two files of one directory that both have it make it unusable. Files are read
// each time: drivers write them at boot and when hardware changes. One that
// cannot be read is reported and does not hide the others.
package cdi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"go.yaml.in/yaml/v4"

	"github.com/minke-os/minke/internal/errdef"
)

// Dirs are where specifications are by default.
var Dirs = []string{"/etc/cdi", "/var/run/cdi"}

// A file is one specification.
type file struct {
	Version string   `json:"cdiVersion"`
	Kind    string   `json:"kind"`
	Devices []device `json:"devices"`
	Edits   edits    `json:"containerEdits"`
}

type device struct {
	Name  string `json:"name"`
	Edits edits  `json:"containerEdits"`
}

type edits struct {
	Env            []string        `json:"env"`
	DeviceNodes    []node          `json:"deviceNodes"`
	NetDevices     []any           `json:"netDevices"`
	Mounts         []mount         `json:"mounts"`
	Hooks          []hook          `json:"hooks"`
	AdditionalGIDs []uint32        `json:"additionalGids"`
	IntelRdt       json.RawMessage `json:"intelRdt"`
}

type node struct {
	Path        string       `json:"path"`
	HostPath    string       `json:"hostPath"`
	Type        string       `json:"type"`
	Major       int64        `json:"major"`
	Minor       int64        `json:"minor"`
	FileMode    *os.FileMode `json:"fileMode"`
	Permissions string       `json:"permissions"`
	UID         *uint32      `json:"uid"`
	GID         *uint32      `json:"gid"`
}

type mount struct {
	HostPath      string   `json:"hostPath"`
	ContainerPath string   `json:"containerPath"`
	Type          string   `json:"type"`
	Options       []string `json:"options"`
}

type hook struct {
	Name    string   `json:"hookName"`
	Path    string   `json:"path"`
	Args    []string `json:"args"`
	Env     []string `json:"env"`
	Timeout *int     `json:"timeout"`
}

// A Registry is what the directories held when it was read.
type Registry struct {
	devices map[string]*found // by qualified name
	Errors  []error           // of files that count for nothing
}

type found struct {
	file     *file
	device   *device
	dir      int
	conflict bool
}

// Read reads all specifications. Directories that are not there are empty.
func Read(dirs []string) *Registry {
	r := &Registry{devices: map[string]*found{}}
	for i, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.Errors = append(r.Errors, err)
		}
		for _, e := range entries {
			ext := filepath.Ext(e.Name())
			if ext != ".json" && ext != ".yaml" {
				continue
			}
			path := filepath.Join(dir, e.Name())
			f, err := readFile(path)
			if err != nil {
				r.Errors = append(r.Errors, fmt.Errorf("%s: %w", path, err))
				continue
			}
			r.add(f, i)
		}
	}
	return r
}

func (r *Registry) add(f *file, dir int) {
	for i := range f.Devices {
		name := f.Kind + "=" + f.Devices[i].Name
		if old := r.devices[name]; old != nil && old.dir == dir {
			old.conflict = true
			continue
		}
		r.devices[name] = &found{file: f, device: &f.Devices[i], dir: dir}
	}
}

const maxFile = 16 << 20 // of a specification; real ones have kilobytes

func readFile(path string) (*file, error) {
	if fi, err := os.Stat(path); err != nil || fi.Size() > maxFile {
		return nil, errors.Join(err, errors.New("it is no file of a sensible size"))
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parse(data, filepath.Ext(path) == ".yaml")
}

var (
	kindForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_-]*$`)
	nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:-]*$`)
)

func parse(data []byte, isYAML bool) (*file, error) {
	if isYAML {
		var v any
		err := yaml.Unmarshal(data, &v)
		if err != nil {
			return nil, err
		}
		if data, err = json.Marshal(v); err != nil { // a mapping whose keys are no text
			return nil, err
		}
	}
	var f file
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, err
	}
	switch {
	case !strings.HasPrefix(f.Version, "0.") && !strings.HasPrefix(f.Version, "1."):
		return nil, fmt.Errorf("cdiVersion is %q, want 0.x or 1.x", f.Version)
	case !kindForm.MatchString(f.Kind):
		return nil, fmt.Errorf("kind is %q, want vendor.com/class", f.Kind)
	}
	for _, d := range f.Devices {
		if !nameForm.MatchString(d.Name) {
			return nil, fmt.Errorf("device name %q is invalid", d.Name)
		}
	}
	return &f, nil
}

// Names are all devices that can be had, sorted.
func (r *Registry) Names() (out []string) {
	for name, d := range r.devices {
		if !d.conflict {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// Has says whether there is a device of the kind, as in vendor.com/class.
func (r *Registry) Has(kind string) bool {
	for _, d := range r.devices {
		if d.file.Kind == kind {
			return true
		}
	}
	return false
}

// Apply gives the container the devices. Errors are of kind errdef.Invalid, in
// Docker's words.
func (r *Registry) Apply(s *specs.Spec, names []string) error {
	var unknown []string
	var all []*edits
	seen := map[*file]bool{}
	for _, name := range names {
		d := r.devices[name]
		if d == nil || d.conflict {
			unknown = append(unknown, name)
			continue
		}
		if !seen[d.file] {
			seen[d.file] = true
			all = append(all, &d.file.Edits)
		}
		all = append(all, &d.device.Edits)
	}
	if len(unknown) > 0 {
		return errdef.Invalid.Errorf("CDI device injection failed: unresolvable CDI devices %s%s", strings.Join(unknown, ", "), r.excuse())
	}
	for _, e := range all {
		if err := e.apply(s); err != nil {
			return errdef.Invalid.Errorf("CDI device injection failed: %w", err)
		}
	}
	return nil
}

// excuse is why a device may be missing.
func (r *Registry) excuse() string {
	if len(r.Errors) == 0 {
		return ""
	}
	return fmt.Sprintf(" (%v)", errors.Join(r.Errors...))
}
