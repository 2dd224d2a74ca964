// Package buildcache keeps the directories that RUN --mount=type=cache mounts:
// what a package manager or a compiler likes to find again in the next build.
//
//	<root>/<key>/record.json   what it is called, when it was used
//	<root>/<key>/data          what is mounted; builds write there as they like
//	<root>/new-*, gone-*       half made, half removed; Open removes them
//
// A directory appears with one rename, when it is filled, and disappears with
// one. What a crash in the middle of a build leaves in data stays there, as it
// would for a compiler that was killed: a cache is for programs that can tell
// what they find. Only records are synced, for a cache may be lost.
//
// A Cache may be used from several goroutines; one process at a time opens a
// root.
package buildcache

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/minke-os/minke/internal/durable"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/order"
)

// A Cache is a root with directories.
type Cache struct {
	root string

	making sync.Mutex // held while a directory or its record is made

	mu      sync.Mutex
	users   map[string]int  // by key
	locked  map[string]bool // the one user wants to be alone
	changed chan struct{}   // closed and replaced when a user leaves
}

// A Sharing says what happens when two builds want the same directory.
type Sharing string

const (
	Shared  Sharing = "shared"  // both have it at once
	Private Sharing = "private" // the second gets another one
	Locked  Sharing = "locked"  // the second waits
)

// A Want is what a mount asks for.
type Want struct {
	ID       string
	Sharing  Sharing // "" is Shared
	Mode     os.FileMode
	UID, GID int
	// Fill is called with a new, empty directory, if not nil.
	Fill func(dir string) error
}

// An Entry is one directory.
type Entry struct {
	Key      string    `json:"-"`
	ID       string    `json:"id"`
	Created  time.Time `json:"created"`
	LastUsed time.Time `json:"lastUsed"`
	Uses     int       `json:"uses"`
	InUse    bool      `json:"-"`
	Size     int64     `json:"-"` // bytes on disk
}

// Open makes the root if it is missing and clears what a crash has left.
func Open(root string) (*Cache, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	names, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	for _, d := range names {
		if strings.HasPrefix(d.Name(), "new-") || strings.HasPrefix(d.Name(), "gone-") {
			if err := os.RemoveAll(filepath.Join(root, d.Name())); err != nil {
				return nil, err
			}
		}
	}
	return &Cache{root: root, users: map[string]int{}, locked: map[string]bool{}, changed: make(chan struct{})}, nil
}

// Use gives the directory that w asks for, which stays until release. It waits
// while somebody else has locked it.
func (c *Cache) Use(ctx context.Context, w Want) (dir string, release func(), err error) {
	key, err := c.take(ctx, w)
	if err != nil {
		return "", nil, err
	}
	release = func() { c.leave(key) }
	if err := c.prepare(key, w); err != nil {
		release()
		return "", nil, fmt.Errorf("cache %s: %w", w.ID, err)
	}
	return filepath.Join(c.root, key, "data"), release, nil
}

// take waits for a key and counts as its user.
func (c *Cache) take(ctx context.Context, w Want) (string, error) {
	base := fmt.Sprintf("%x", sha256.Sum256([]byte(w.ID)))[:24]
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		key := base
		for n := 2; w.Sharing == Private && c.users[key] > 0; n++ {
			key = fmt.Sprintf("%s-%d", base, n)
		}
		if c.users[key] == 0 || w.Sharing != Locked && !c.locked[key] {
			c.users[key]++
			c.locked[key] = w.Sharing == Locked
			return key, nil
		}
		changed := c.changed
		c.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		c.mu.Lock()
		if err := ctx.Err(); err != nil {
			return "", err
		}
	}
}

func (c *Cache) leave(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users[key]--; c.users[key] == 0 {
		delete(c.users, key)
		delete(c.locked, key)
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

// prepare makes the directory, unless it is there, and notes that it is used.
func (c *Cache) prepare(key string, w Want) error {
	c.making.Lock()
	defer c.making.Unlock()
	e, err := c.read(key)
	if err == nil {
		e.LastUsed, e.Uses = time.Now().UTC(), e.Uses+1
		return c.write(filepath.Join(c.root, key), e)
	}
	// Also where the record is unreadable: then the directory is useless.
	if err := c.remove(key); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(c.root, "new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // gone if all goes well
	if err := fill(filepath.Join(dir, "data"), w); err != nil {
		return err
	}
	now := time.Now().UTC()
	if err := c.write(dir, Entry{ID: w.ID, Created: now, LastUsed: now, Uses: 1}); err != nil {
		return err
	}
	return durable.Rename(dir, filepath.Join(c.root, key))
}

func fill(dir string, w Want) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if w.Fill != nil {
		if err := w.Fill(dir); err != nil {
			return err
		}
	}
	if err := os.Chown(dir, w.UID, w.GID); err != nil {
		return err
	}
	return os.Chmod(dir, w.Mode)
}

func (c *Cache) read(key string) (e Entry, err error) {
	data, err := os.ReadFile(filepath.Join(c.root, key, "record.json"))
	if err == nil {
		err = json.Unmarshal(data, &e)
	}
	e.Key = key
	return e, err
}

func (c *Cache) write(dir string, e Entry) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, "record.json"), data, 0o600)
}

// List gives all directories, those that were not used for the longest first.
func (c *Cache) List() ([]Entry, error) {
	names, err := os.ReadDir(c.root)
	if err != nil {
		return nil, err
	}
	var all []Entry
	for _, d := range names {
		e, err := c.read(d.Name())
		if err != nil {
			continue // half made, or just removed
		}
		e.Size = size(filepath.Join(c.root, d.Name()))
		c.mu.Lock()
		e.InUse = c.users[e.Key] > 0
		c.mu.Unlock()
		all = append(all, e)
	}
	order.By(all, func(a, b Entry) int { return a.LastUsed.Compare(b.LastUsed) })
	return all, nil
}

// Remove deletes a directory. It is Busy while a build uses it.
func (c *Cache) Remove(key string) error {
	c.mu.Lock()
	if c.users[key] > 0 {
		c.mu.Unlock()
		return errdef.Busy.Errorf("build cache %s is in use by a build", key)
	}
	c.users[key], c.locked[key] = 1, true
	c.mu.Unlock()
	defer c.leave(key)
	return c.remove(key)
}

func (c *Cache) remove(key string) error {
	gone := filepath.Join(c.root, "gone-"+key)
	if err := os.Rename(filepath.Join(c.root, key), gone); err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.RemoveAll(gone)
}

// size is what a tree takes on the disk, each file once.
func size(dir string) (total int64) {
	seen := map[uint64]bool{}
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // it changes while we look
		}
		if fi, err := d.Info(); err == nil {
			st := fi.Sys().(*syscall.Stat_t)
			if st.Nlink == 1 || !seen[st.Ino] {
				total += st.Blocks * 512
			}
			seen[st.Ino] = st.Nlink > 1
		}
		return nil
	})
	return total
}
