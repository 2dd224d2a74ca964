package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/internal/durable"
	"github.com/minke-os/minke/runtime/internal/seccomp"
)

// Filters keeps compiled seccomp filters as files. Most containers have the
// same one; a file is written once and stays. It may be used by many at once.
type Filters struct {
	Dir string

	mu   sync.Mutex
	done map[[32]byte]string // by the hash of the profile
}

// file returns the file with the filter of s; "" if there is nothing to filter.
func (f *Filters) file(s *specs.LinuxSeccomp) (string, error) {
	if s == nil {
		return "", nil
	}
	profile, err := json.Marshal(s)
	if err != nil {
		return "", err
	}
	key := sha256.Sum256(profile)
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

func (f *Filters) compile(s *specs.LinuxSeccomp) (string, error) {
	filter, err := seccomp.Compile(s)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(f.Dir, 0o700); err != nil {
		return "", err
	}
	sum := sha256.Sum256(filter)
	path := filepath.Join(f.Dir, hex.EncodeToString(sum[:16]))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	return path, durable.WriteFile(path, filter, 0o600)
}
