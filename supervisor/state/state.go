// Package state keeps what the supervisor must remember over a power cut.
//
//	target.json   the target state as it was received
//	device.json   the device's identity, API keys, and services a person stopped
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
	"sync"

	"github.com/minke-os/minke/internal/durable"
	"github.com/minke-os/minke/supervisor/model"
)

const version = 1

// A Target is the last accepted target state, in the bytes it came in.
type Target struct {
	Version int             `json:"version"`
	Source  string          `json:"source"` // local, or the fleet server's address
	Body    json.RawMessage `json:"body"`
}

// SourceLocal is the source of targets posted to this device.
const SourceLocal = "local"

type device struct {
	Version   int               `json:"version"`
	UUID      string            `json:"uuid"`
	Name      string            `json:"name,omitempty"`
	GlobalKey string            `json:"globalKey"`
	Keys      map[string]string `json:"keys,omitempty"`    // app/service -> API key
	Stopped   []string          `json:"stopped,omitempty"` // app/service
}

// A Store is the directory.
type Store struct {
	dir string

	mu      sync.Mutex // guards the fields below
	dev     device
	target  Target
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

// Target is the last accepted target state; its Body is nil if there is none.
func (s *Store) Target() Target {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.target
}

// SetTarget remembers a target state.
func (s *Store) SetTarget(source string, body []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := Target{version, source, body}
	if err := s.write("target.json", t); err != nil {
		return fmt.Errorf("store target state: %w", err)
	}
	s.target = t
	return nil
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

// Scope finds what an API key may act on: everything, or one application.
func (s *Store) Scope(key string) (global bool, app model.AppID, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if key == "" {
		return false, 0, false
	}
	if key == s.dev.GlobalKey {
		return true, 0, true
	}
	for svc, k := range s.dev.Keys {
		if k == key {
			return false, appOf(svc), true
		}
	}
	return false, 0, false
}

func appOf(service string) model.AppID {
	var id int
	fmt.Sscanf(service, "%d/", &id) // keys are made by EnsureKeys only
	return model.AppID(id)
}

// Stopped are the services that a person stopped, as a copy.
func (s *Store) Stopped() map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]bool{}
	for _, svc := range s.dev.Stopped {
		out[svc] = true
	}
	return out
}

// SetStopped remembers whether services are to stay stopped.
func (s *Store) SetStopped(stopped bool, services ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	set := map[string]bool{}
	for _, svc := range s.dev.Stopped {
		set[svc] = true
	}
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
