// Package volume keeps named directories that outlive containers.
//
//	<root>/<name>/_data   what is mounted; never touched by this package after the first copy-up
//
// Of a volume that stands for a directory of the host (type none, o bind)
// _data is a link to it; that directory is not ours to make or to remove.
//
// A volume exists when its record does; the record is written last and removed
// first, so a crash leaves at most a directory that nobody names, which the
// next Create of that name takes over with its content. Methods may be called
// from many goroutines. Whether a container uses a volume is the engine's
// business.
package volume

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	"github.com/minke-os/minke/internal/durable"
	"github.com/minke-os/minke/internal/errdef"
)

// AnonymousLabel marks volumes that were made without a name, as Docker does.
const AnonymousLabel = "com.docker.volume.anonymous"

var bucket = []byte("volumes.1")

// names are Docker's volume names: at least two characters.
var names = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// A Volume is one record.
type Volume struct {
	Name    string
	Driver  string
	Options map[string]string
	Labels  map[string]string
	Created time.Time
	// Copied is set once the content of an image was offered to the volume.
	Copied bool
}

// Anonymous reports whether nobody chose its name.
func (v Volume) Anonymous() bool { _, ok := v.Labels[AnonymousLabel]; return ok }

// Store is the set of volumes below one directory.
type Store struct {
	root string
	db   *bbolt.DB
	mu   sync.Mutex // serialises changes, and copy-ups of two containers that start together
}

// Open uses root, which is created, and its own bucket of db.
func Open(root string, db *bbolt.DB) (*Store, error) {
	if err := os.MkdirAll(root, 0o701); err != nil {
		return nil, err
	}
	err := db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(bucket)
		return err
	})
	return &Store{root: root, db: db}, err
}

// Path is where the volume's data lies.
func (s *Store) Path(name string) string { return filepath.Join(s.root, name, "_data") }

// Create makes a volume or returns the one of that name; it is a Conflict to
// ask for an existing one with other options.
func (s *Store) Create(v Volume) (Volume, error) {
	if !names.MatchString(v.Name) {
		return Volume{}, errdef.Invalid.Errorf("create %s: %q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", v.Name, v.Name)
	}
	if v.Driver == "" {
		v.Driver = "local"
	}
	if v.Driver != "local" {
		return Volume{}, errdef.NotFound.Errorf("create %s: error looking up volume plugin %s: plugin %q not found; minke has the driver \"local\"", v.Name, v.Driver, v.Driver)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, err := s.Get(v.Name); err == nil {
		if len(v.Options) > 0 && fmt.Sprint(v.Options) != fmt.Sprint(old.Options) {
			return Volume{}, errdef.Conflict.Errorf("create %s: conflict: volume exists with other options; remove it first", v.Name)
		}
		return old, nil
	}
	for k := range v.Options {
		if !slices.Contains([]string{"type", "o", "device", "size"}, k) {
			return Volume{}, errdef.Invalid.Errorf("create %s: invalid option: %q", v.Name, k)
		}
	}
	if err := s.makeData(v); err != nil {
		return Volume{}, err
	}
	if err := durable.SyncDir(s.root); err != nil {
		return Volume{}, err
	}
	v.Created = time.Now().UTC()
	return v, s.put(v)
}

// makeData makes the volume's directory, or its link to one of the host.
func (s *Store) makeData(v Volume) error {
	path := s.Path(v.Name)
	// What a crash left of another volume must not lead the new one away.
	if fi, err := os.Lstat(path); err == nil && fi.Mode()&os.ModeSymlink != 0 {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	device := v.Options["device"]
	if v.Options["type"] == "" && device == "" {
		return os.MkdirAll(path, 0o755)
	}
	o := v.Options["o"]
	if v.Options["type"] != "none" && v.Options["type"] != "bind" || o != "bind" && o != "rbind" {
		return errdef.Unsupported.Errorf("create %s: volumes of type %q with o=%q are not supported; minke has directories of its own and type=none,o=bind,device=/path", v.Name, v.Options["type"], o)
	}
	if !filepath.IsAbs(device) {
		return errdef.Invalid.Errorf("create %s: device must be an absolute path, not %q", v.Name, device)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.Symlink(device, path)
}

func (s *Store) put(v Volume) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Put([]byte(v.Name), data) })
}

// Get finds a volume by its full name.
func (s *Store) Get(name string) (v Volume, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		data := tx.Bucket(bucket).Get([]byte(name))
		if data == nil {
			return errdef.NotFound.Errorf("get %s: no such volume", name)
		}
		if err := json.Unmarshal(data, &v); err != nil {
			return fmt.Errorf("volume record %q: %w", name, err)
		}
		return nil
	})
	return v, err
}

// List returns all volumes sorted by name. Records that cannot be read are
// left out; they stay on disk.
func (s *Store) List() (all []Volume, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucket).ForEach(func(k, data []byte) error {
			var v Volume
			if json.Unmarshal(data, &v) == nil {
				all = append(all, v)
			}
			return nil
		})
	})
	return all, err
}

// Remove deletes a volume and its data.
func (s *Store) Remove(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.Get(name); err != nil {
		return err
	}
	err := s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Delete([]byte(name)) })
	if err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(s.root, name))
}

// CopyUp lets fill put an image's content into the volume, once in the
// volume's life and only while it is empty. Of two containers that mount the
// same new volume one fills it and the other waits.
func (s *Store) CopyUp(name string, fill func(dir string) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.Get(name)
	if err != nil || v.Copied {
		return err
	}
	dir := s.Path(name)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) == 0 {
		if err := fill(dir); err != nil {
			// Half a copy would look like the user's data.
			return fmt.Errorf("copy image content into volume %s: %w", name, cleared(dir, err))
		}
	}
	v.Copied = true
	return s.put(v)
}

func cleared(dir string, err error) error {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if rerr := os.RemoveAll(filepath.Join(dir, e.Name())); rerr != nil {
			return fmt.Errorf("%w; and clearing it: %w", err, rerr)
		}
	}
	return err
}

// Size is the number of bytes of the files in a volume.
func (s *Store) Size(name string) int64 {
	var n int64
	filepath.WalkDir(s.Path(name), func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if fi, err := d.Info(); err == nil {
				n += fi.Size()
			}
		}
		return nil // files come and go while we look
	})
	return n
}
