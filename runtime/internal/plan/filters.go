package plan

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/runtime/internal/seccomp"
)

// Filters keeps compiled seccomp filters as files. Most containers have the
// same one; a file is written once and stays. It may be used by many at once,
// and by many processes.
type Filters struct {
	Dir string

	// Hash tells profiles apart, so that equal ones are compiled once. Who
	// makes one container leaves it nil; crypto/sha256 is 150 kB of a program.
	Hash func([]byte) [32]byte

	mu   sync.Mutex
	done map[[32]byte]string // by the hash of the profile
}

// file returns the file with the filter of s; "" if there is nothing to filter.
func (f *Filters) file(s *specs.LinuxSeccomp) (string, error) {
	if s == nil {
		return "", nil
	}
	if f.Hash == nil {
		return f.compile(s)
	}
	profile, err := json.Marshal(s)
	if err != nil {
		return "", err
	}
	key := f.Hash(profile)
	f.mu.Lock()
	defer f.mu.Unlock()
	if path, ok := f.done[key]; ok {
		return path, nil
	}
	path, err := f.compile(s)
	if err != nil {
		return "", err
	}
	if f.done == nil {
		f.done = map[[32]byte]string{}
	}
	f.done[key] = path
	return path, nil
}

// compile looks for a file with the filter of s before it writes one. What a
// crash leaves half written, or another process has not yet written to its end,
// is like no filter.
func (f *Filters) compile(s *specs.LinuxSeccomp) (string, error) {
	filter, err := seccomp.Compile(s)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(f.Dir, 0o700); err != nil {
		return "", err
	}
	there, err := os.ReadDir(f.Dir)
	if err != nil {
		return "", err
	}
	for _, e := range there {
		path := filepath.Join(f.Dir, e.Name())
		if text, err := os.ReadFile(path); err == nil && bytes.Equal(text, filter) {
			return path, nil
		}
	}
	file, err := os.CreateTemp(f.Dir, "")
	if err != nil {
		return "", err
	}
	_, err = file.Write(filter)
	if err = errors.Join(err, file.Close()); err != nil {
		os.Remove(file.Name())
		return "", err
	}
	return file.Name(), nil
}
