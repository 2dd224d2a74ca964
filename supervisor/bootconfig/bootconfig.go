// Package bootconfig reads and changes what a device's boot partition says of
// it, which the host, people and we share: config.json, and for what boots the
// host config.txt, extra_uEnv.txt or extlinux.conf, the splash picture, ACPI tables,
// and of some boards a few bytes that are in no file.
//
// What we do not know stays as it is. A change replaces the file atomically, so
// that a power cut leaves the old one or the new one; of bytes it may leave some,
// and doing it again mends that. The file is read again
// before each change: somebody may have edited it. One process at a time may
// change it.
package bootconfig

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"sync"

	"github.com/minke-os/minke/internal/durable"
)

// A File is config.json at a path, which need not exist.
type File struct {
	path string
	mu   sync.Mutex
}

// At is the file at path.
func At(path string) *File { return &File{path: path} }

// Read decodes the file into a struct; a missing file changes nothing.
func (f *File) Read(into any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	data, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	return nil
}

// Set changes some keys; nil removes one. It writes only if something changes.
func (f *File) Set(values map[string]any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := map[string]json.RawMessage{}
	data, err := os.ReadFile(f.path)
	if err == nil {
		err = json.Unmarshal(data, &all)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	changed := false
	for k, v := range values {
		old, had := all[k]
		if v == nil {
			delete(all, k)
			changed = changed || had
			continue
		}
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if !had || !equal(old, b) {
			all[k], changed = b, true
		}
	}
	if !changed {
		return nil
	}
	out, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(f.path, append(out, '\n'), 0o600)
}

func equal(a, b json.RawMessage) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}
