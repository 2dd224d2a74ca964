package supervisor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/minke-os/minke/internal/durable"
	"github.com/minke-os/minke/supervisor/appsjson"
	"github.com/minke-os/minke/supervisor/state"
)

// preload takes up the target of a device that was never given one: apps.json,
// which was put beside the images when the medium was written; see package
// appsjson for its forms. With pinDevice the device stays in that release: the
// fleet server is told before it is asked for another.
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
	file, err := appsjson.Parse(data)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if len(file.Apps) == 0 {
		return nil
	}
	body, err := file.Body(s.store.UUID())
	if err != nil {
		return err
	}
	if err := s.adoptCloud(body); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	want, _ := s.wanted()
	for _, ref := range images(want) { // ours to remove when nobody wants them any more
		if err := s.store.SetImage(ref, ref); err != nil {
			return err
		}
	}
	if err := s.store.SetPin(file.Pin); err != nil {
		return err
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
