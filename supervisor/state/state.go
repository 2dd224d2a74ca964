// Package state keeps what the supervisor must remember over a power cut.
//
//	target.json   the target state as it was received
//	good.json     the last one that worked, to go back to
//	held.json     applications in the release that ran before one that this
//	              device cannot run
//	local.json    the one posted to this device while a fleet server manages it
//	device.json   the device's identity, API keys, services that a person stopped
//	              or a target keeps from running, tags and a pin for the server,
//	              images that we brought
//
// Everything else is computed from the engine. Each file is replaced
// atomically (package durable) and only when its content changes: flash wears.
// A file that cannot be read is set aside as <name>.corrupt and reported; the
// device then starts as if it were new, and containers keep running until a
// target says otherwise.
//
// A Store's methods are safe for concurrent use. One process at a time may
// open a directory.
package state

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/minke-os/minke/internal/durable"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/supervisor/appsjson"
	"github.com/minke-os/minke/supervisor/model"
)

const version = 1

type device struct {
	Version   int               `json:"version"`
	UUID      string            `json:"uuid"`
	Name      string            `json:"name,omitempty"`
	GlobalKey string            `json:"globalKey"`
	Keys      map[string]string `json:"keys,omitempty"`    // app/service -> API key
	Stopped   []string          `json:"stopped,omitempty"` // app/service
	Rested    []string          `json:"rested,omitempty"`  // app/service
	Tags      map[string]string `json:"tags,omitempty"`    // that the server has not got yet
	Images    []string          `json:"images,omitempty"`  // references that we pulled
	Names     map[string]string `json:"names,omitempty"`   // the engine's, of images that came as deltas, by reference
	Server    string            `json:"server,omitempty"`  // that knows the settings we came with
	Before    *Inventory        `json:"beforeLocal,omitempty"`
	Host      []string          `json:"host,omitempty"`     // variables that set something of the host
	Rejected  string            `json:"rejected,omitempty"` // hash of a target that did not work
	Reason    string            `json:"reason,omitempty"`   // why
	Pin       *appsjson.Pin     `json:"pin,omitempty"`      // that the server does not know yet
}

// An Inventory is what an engine had: IDs, and names of volumes and networks.
type Inventory struct {
	Containers, Images, Volumes, Networks []string
}

// A Store is the directory.
type Store struct {
	dir string

	mu      sync.Mutex // guards the fields below
	dev     device
	target  Target
	local   Target
	good    Target
	held    Target
	written map[string][]byte
}

// Open reads the directory, making it and the device's identity if there is
// none. A uuid from elsewhere (config.json) wins over a generated one.
func Open(dir, uuid string, log *slog.Logger) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := durable.RemoveLeftovers(dir); err != nil {
		return nil, err
	}
	s := &Store{dir: dir, written: map[string][]byte{}}
	if err := s.load("device.json", &s.dev, func() int { return s.dev.Version }, log); err != nil {
		return nil, err
	}
	if err := s.load("target.json", &s.target, func() int { return s.target.Version }, log); err != nil {
		return nil, err
	}
	if err := s.load("local.json", &s.local, func() int { return s.local.Version }, log); err != nil {
		return nil, err
	}
	if err := s.load("good.json", &s.good, func() int { return s.good.Version }, log); err != nil {
		return nil, err
	}
	if err := s.load("held.json", &s.held, func() int { return s.held.Version }, log); err != nil {
		return nil, err
	}
	s.dev.Version = version
	if uuid != "" {
		s.dev.UUID = uuid
	}
	if s.dev.UUID == "" {
		s.dev.UUID = newKey()
	}
	if s.dev.GlobalKey == "" {
		s.dev.GlobalKey = newKey()
	}
	if s.dev.Keys == nil {
		s.dev.Keys = map[string]string{}
	}
	return s, s.saveDevice()
}

func (s *Store) load(name string, into any, version func() int, log *slog.Logger) error {
	path := filepath.Join(s.dir, name)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	err = json.Unmarshal(data, into)
	if err == nil && version() > 1 {
		return fmt.Errorf("%s was written by a newer version of this program (format %d)", path, version())
	}
	if err != nil {
		log.Error("set aside a file that cannot be read", "file", path, "err", err)
		return durable.Rename(path, path+".corrupt")
	}
	s.written[name] = data
	return nil
}

func newKey() string {
	b := make([]byte, 16)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// write replaces a file unless it already says so.
func (s *Store) write(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if bytes.Equal(data, s.written[name]) {
		return nil
	}
	if err := durable.WriteFile(filepath.Join(s.dir, name), data, 0o600); err != nil {
		return err
	}
	s.written[name] = data
	return nil
}

func (s *Store) saveDevice() error { return s.write("device.json", s.dev) }

// Rejected is the hash of the target that did not work, and why; "" for none.
func (s *Store) Rejected() (hash, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dev.Rejected, s.dev.Reason
}

// SetRejected remembers one that does not; "" forgets it.
func (s *Store) SetRejected(hash, reason string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dev.Rejected, s.dev.Reason = hash, reason
	return s.saveDevice()
}

// Pin is the release that the device is to stay in, of which the server has not
// been told yet; nil if there is none.
func (s *Store) Pin() *appsjson.Pin {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dev.Pin
}

// SetPin remembers one; nil forgets it.
func (s *Store) SetPin(p *appsjson.Pin) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dev.Pin = p
	return s.saveDevice()
}

// SetUUID changes the device's identity.
func (s *Store) SetUUID(uuid string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dev.UUID = uuid
	return s.saveDevice()
}

// UUID is the device's identity.
func (s *Store) UUID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dev.UUID
}

// GlobalKey is the API key that may do everything.
func (s *Store) GlobalKey() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dev.GlobalKey
}

// NewKey replaces an API key, and returns the new one. It is NotFound for one
// that is none.
func (s *Store) NewKey(old string) (key string, global bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key = newKey()
	if old == s.dev.GlobalKey && old != "" {
		s.dev.GlobalKey = key
		return key, true, s.saveDevice()
	}
	for svc, k := range s.dev.Keys {
		if k == old && old != "" {
			s.dev.Keys[svc] = key
			return key, false, s.saveDevice()
		}
	}
	return "", false, errdef.NotFound.Errorf("there is no such API key")
}

// Tags are those that the server has not got yet, as a copy.
func (s *Store) Tags() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.dev.Tags)
}

// AddTags remembers tags for the server.
func (s *Store) AddTags(tags map[string]string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := maps.Clone(s.dev.Tags)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, tags)
	s.dev.Tags = all
	return s.saveDevice()
}

// DropTags forgets tags that the server has, unless they have changed since.
func (s *Store) DropTags(tags map[string]string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := maps.Clone(s.dev.Tags)
	maps.DeleteFunc(all, func(k, v string) bool { sent, ok := tags[k]; return ok && sent == v })
	s.dev.Tags = all
	return s.saveDevice()
}

// Images are the references that we pulled, as a copy.
func (s *Store) Images() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.dev.Images)
}

// SetImage remembers that we pulled a reference, and by which name the engine
// has it; "" forgets it.
func (s *Store) SetImage(ref, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, had := slices.BinarySearch(s.dev.Images, ref)
	switch {
	case name != "" && !had:
		s.dev.Images = slices.Insert(slices.Clone(s.dev.Images), at, ref)
	case name == "" && had:
		s.dev.Images = slices.Delete(slices.Clone(s.dev.Images), at, at+1)
	}
	names := maps.Clone(s.dev.Names)
	delete(names, ref)
	if name != "" && name != ref {
		if names == nil {
			names = map[string]string{}
		}
		names[ref] = name
	}
	s.dev.Names = names
	return s.saveDevice()
}

// EngineName is the name by which the engine has a reference's image.
func (s *Store) EngineName(ref string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return cmp.Or(s.dev.Names[ref], ref)
}

// Server is the address of the one that knows the settings that the device came
// with; "" if none does.
func (s *Store) Server() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dev.Server
}

// SetServer remembers it.
func (s *Store) SetServer(address string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dev.Server = address
	return s.saveDevice()
}

// BeforeLocal is what the engine had when the device entered local mode; nil if
// it did not.
func (s *Store) BeforeLocal() *Inventory {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dev.Before
}

// SetBeforeLocal remembers it; nil forgets it.
func (s *Store) SetBeforeLocal(i *Inventory) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dev.Before = i
	return s.saveDevice()
}

// HostVariables are the names of variables that set something of the host.
func (s *Store) HostVariables() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.dev.Host)
}

// SetHostVariables remembers them, in any order.
func (s *Store) SetHostVariables(names []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dev.Host = slices.Compact(slices.Sorted(slices.Values(names)))
	return s.saveDevice()
}

// EnsureKeys makes API keys for the services that have none.
func (s *Store) EnsureKeys(services []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, svc := range services {
		if s.dev.Keys[svc] == "" {
			s.dev.Keys[svc] = newKey()
		}
	}
	return s.saveDevice()
}

// Key is the API key of "app/service".
func (s *Store) Key(service string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dev.Keys[service]
}

// Scope finds what an API key may act on: everything, or one application, as
// one of its services.
func (s *Store) Scope(key string) (global bool, app model.AppID, service string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if key == "" {
		return false, 0, "", false
	}
	if key == s.dev.GlobalKey {
		return true, 0, "", true
	}
	for svc, k := range s.dev.Keys {
		if k == key {
			id, name, _ := strings.Cut(svc, "/")
			n, _ := model.Int(id) // keys are made by EnsureKeys only
			return false, model.AppID(n), name, true
		}
	}
	return false, 0, "", false
}

// Stopped are the services that a person stopped, as a copy.
func (s *Store) Stopped() map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return setOf(s.dev.Stopped)
}

// SetStopped remembers whether services are to stay stopped.
func (s *Store) SetStopped(stopped bool, services ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	set := setOf(s.dev.Stopped)
	for _, svc := range services {
		if stopped {
			set[svc] = true
		} else {
			delete(set, svc)
		}
	}
	s.dev.Stopped = slices.Sorted(maps.Keys(set))
	return s.saveDevice()
}

// Rested are the services that the target reached last keeps from running, as a
// copy.
func (s *Store) Rested() map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return setOf(s.dev.Rested)
}

// SetRested remembers them as change leaves them.
func (s *Store) SetRested(change func(rested map[string]bool)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	set := setOf(s.dev.Rested)
	change(set)
	s.dev.Rested = slices.Sorted(maps.Keys(set))
	return s.saveDevice()
}

func setOf(list []string) map[string]bool {
	out := map[string]bool{}
	for _, x := range list {
		out[x] = true
	}
	return out
}
