package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/minke-os/minke/internal/durable"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/supervisor/state"
)

// preload takes up the target of a device that was never given one: apps.json,
// which was put beside the images when the medium was written. Its form is that
// of balena preload: a target state of version 3 without the device's identity.
//
// It is used once. The file is then called apps.json.preloaded, with {} in its
// place. One that is wrong stays, and is said to be wrong at every start.
func (s *Supervisor) preload() error {
	path := s.cfg.Preload
	if path == "" || s.store.Target().Body != nil {
		return nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EISDIR) {
		return nil // Docker makes a directory of a file that it should mount and cannot find
	}
	if err != nil {
		return err
	}
	var file struct {
		Name   string                     `json:"name,omitempty"`
		Config json.RawMessage            `json:"config,omitempty"`
		Apps   map[string]json.RawMessage `json:"apps"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return errdef.Invalid.Errorf("%s: %w", path, err)
	}
	if len(file.Apps) == 0 {
		return nil
	}
	for id, raw := range file.Apps {
		var app struct{ Releases map[string]json.RawMessage }
		if err := json.Unmarshal(raw, &app); err != nil || len(app.Releases) == 0 {
			return errdef.Invalid.Errorf("%s: apps.%s has no releases; want a target state of version 3, as balena preload writes it", path, id)
		}
	}
	body, err := json.Marshal(map[string]any{s.store.UUID(): file})
	if err != nil {
		return err
	}
	if err := s.adoptCloud(body); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	want, _ := s.wanted()
	for _, ref := range images(want) { // ours to remove when nobody wants them any more
		if err := s.store.SetImage(ref, true); err != nil {
			return err
		}
	}
	if err := s.store.SetTarget(state.SourcePreload, body); err != nil {
		return err
	}
	s.hub.System("Starting with the applications that came with the medium")
	// From here on it is not read again, whatever happens.
	if err := durable.WriteFile(path+".preloaded", data, 0o644); err != nil {
		return err
	}
	return durable.WriteFile(path, []byte("{}\n"), 0o644)
}
