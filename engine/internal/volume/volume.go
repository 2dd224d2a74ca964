// Package volume keeps named directories that outlive containers.
//
//	<root>/<name>/_data   what is mounted; never touched by this package after the first copy-up
//
// What is at _data depends on the volume's options (source.go):
//
//   - a directory, with a quota if a size was given (quota.go);
//   - a link to a directory of the host (type none, o bind), which is not ours
//     to make or to remove;
//   - a mount point, for a tmpfs, a block device, a network share or a
//     partition of a stick. It is mounted from the first Use to the last
//     Release, by a goroutine of its own (keeper.go), so that a server that is
//     away keeps nobody waiting. Shares and sticks may come and go meanwhile:
//     then the engine shows and hides them in running containers (mount.go).
//
// A volume exists when its record does; the record is written last and removed
// first, so a crash leaves at most a directory that nobody names, which the
// next Create of that name takes over with its content. A crash also leaves
// mounts; after it the users say Use again and Reconcile unmounts the rest.
// Methods may be called from many goroutines. Whether a container uses a volume
// is the engine's business.
package volume

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
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
	// Project is the project that its quota counts, 0 without one.
	Project uint32 `json:",omitempty"`
}

// Anonymous reports whether nobody chose its name.
func (v Volume) Anonymous() bool { _, ok := v.Labels[AnonymousLabel]; return ok }

// Options say where volumes are and who wants to know of them. Root and DB are
// needed.
type Options struct {
	Root   string // created
	DB     *bbolt.DB
	Logger *slog.Logger
	// Disks finds a partition that is plugged in. Without it there are no
	// volumes of the driver usb.
	Disks func(Disk) (Partition, bool)
	// Changed is called when a volume that may come late has come or gone. It
	// must not wait for a container to start or stop.
	Changed func(name string, present bool)
}

// Store is the set of volumes below one directory.
type Store struct {
	root     string
	db       *bbolt.DB
	log      *slog.Logger
	disks    func(Disk) (Partition, bool)
	onChange func(name string, present bool)
	mount    func(src source, path string) error // source.mount, but in tests

	mu sync.Mutex // serialises changes, and copy-ups of two containers that start together

	closed chan struct{}
	wg     sync.WaitGroup // keepers

	live    sync.Mutex
	keepers map[string]*keeper // by volume
}

// Open uses a directory and its own bucket of the database.
func Open(o Options) (*Store, error) {
	if err := os.MkdirAll(o.Root, 0o701); err != nil {
		return nil, err
	}
	// As mountinfo has it.
	root, err := filepath.EvalSymlinks(o.Root)
	if err != nil {
		return nil, err
	}
	if root, err = filepath.Abs(root); err != nil {
		return nil, err
	}
	err = o.DB.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(bucket)
		return err
	})
	s := &Store{
		root: root, db: o.DB, log: o.Logger, disks: o.Disks, onChange: o.Changed, mount: source.mount,
		closed: make(chan struct{}), keepers: map[string]*keeper{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s, err
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
		v.Driver = Local
	}
	if v.Driver != Local && v.Driver != USB {
		return Volume{}, errdef.NotFound.Errorf("create %s: error looking up volume plugin %s: plugin %q not found; minke has the drivers \"local\" and \"usb\"", v.Name, v.Driver, v.Driver)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, err := s.Get(v.Name); err == nil {
		if len(v.Options) > 0 && fmt.Sprint(v.Options) != fmt.Sprint(old.Options) {
			return Volume{}, errdef.Conflict.Errorf("create %s: conflict: volume exists with other options; remove it first", v.Name)
		}
		return old, nil
	}
	src, err := parse(v)
	if err != nil {
		return Volume{}, err
	}
	if err := s.makeData(&v, src); err != nil {
		return Volume{}, err
	}
	if err := durable.SyncDir(s.root); err != nil {
		return Volume{}, err
	}
	v.Created = time.Now().UTC()
	return v, s.put(v)
}

// makeData makes the volume's directory, or its link to one of the host.
func (s *Store) makeData(v *Volume, src source) error {
	path := s.Path(v.Name)
	// What a crash left of another volume must not lead the new one away.
	if fi, err := os.Lstat(path); err == nil && fi.Mode()&os.ModeSymlink != 0 {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	if src.kind == "bind" {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return os.Symlink(src.device, path)
	}
	if err := os.MkdirAll(path, 0o755); err != nil || src.size == 0 {
		return err
	}
	project, err := s.freeProject()
	if err != nil {
		return err
	}
	if err := setQuota(path, project, src.size); err != nil {
		return errors.Join(fmt.Errorf("create %s: %w", v.Name, err), os.RemoveAll(filepath.Dir(path)))
	}
	v.Project = project
	return nil
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

// Remove deletes a volume and its data; never that of a share, a disk or a
// directory of the host.
func (s *Store) Remove(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.Get(name)
	if err != nil {
		return err
	}
	dir := filepath.Join(s.root, name)
	left, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	for _, m := range left { // its last user has only just gone
		if err := unmount(m.Mountpoint); err != nil {
			return err
		}
	}
	err = s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Delete([]byte(name)) })
	if err != nil {
		return err
	}
	if v.Project != 0 {
		// The directory goes in any case; a limit without files limits nothing.
		if err := setQuota(s.Path(name), v.Project, 0); err != nil {
			s.log.Warn("remove the quota of a volume", "volume", name, "err", err)
		}
	}
	return os.RemoveAll(dir)
}

// CopyUp lets fill put an image's content into the volume, once in the
// volume's life and only while it is empty; what is mounted from elsewhere has
// its own content. Of two containers that mount the same new volume one fills
// it and the other waits.
func (s *Store) CopyUp(name string, fill func(dir string) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.Get(name)
	if err != nil || v.Copied {
		return err
	}
	if src, err := parse(v); err != nil || src.mounted() {
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

// Size is the number of bytes of the files in a volume, -1 for one that is
// mounted, as Docker has it for what is not on its disk: to look could take
// for ever.
func (s *Store) Size(name string) int64 {
	v, err := s.Get(name)
	if err != nil {
		return -1
	}
	if src, err := parse(v); err != nil || src.mounted() {
		return -1
	}
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

// IsBind says whether the volume is a directory of the host.
func (s *Store) IsBind(name string) bool {
	v, err := s.Get(name)
	if err != nil {
		return false
	}
	src, err := parse(v)
	return err == nil && src.kind == "bind"
}
