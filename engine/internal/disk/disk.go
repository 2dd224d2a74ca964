// Package disk knows which partitions are plugged in, and what is on them.
//
// A Watch is told of block devices that come and go (Handle) and finds one by
// label, UUID or path. It reads the first blocks of a device only when somebody
// looks for a disk, so a device without such volumes pays nothing. It mounts
// nothing and writes nothing. Methods may be called from many goroutines.
package disk

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// A Partition is a block device with a file system.
type Partition struct {
	FileSystem
	Device string // path of its node
	// Gone is closed when it is pulled out.
	Gone <-chan struct{}
}

// Watch is the set of block devices that are plugged in.
type Watch struct {
	sys, dev string

	mu      sync.Mutex
	present map[string]*device // by name, as in /sys/class/block
}

type device struct {
	probed bool
	fs     FileSystem
	gone   chan struct{}
}

// New makes a Watch of the host's devices. Call Rescan once events are heard.
func New() *Watch { return newWatch("/sys", "/dev") }

func newWatch(sys, dev string) *Watch {
	return &Watch{sys: sys, dev: dev, present: map[string]*device{}}
}

// Rescan looks at what is there. It reports whether anything changed.
func (w *Watch) Rescan() (changed bool) {
	entries, err := os.ReadDir(filepath.Join(w.sys, "class/block"))
	if err != nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	there := map[string]bool{}
	for _, e := range entries {
		there[e.Name()] = true
		changed = w.addLocked(e.Name()) || changed
	}
	for name := range w.present {
		if !there[name] {
			changed = w.removeLocked(name) || changed
		}
	}
	return changed
}

// Handle takes an event of the subsystem block: what happened to which node.
// It reports whether a search may have another result now.
func (w *Watch) Handle(action, name string) (changed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch action {
	case "remove":
		return w.removeLocked(name)
	case "add":
		return w.addLocked(name)
	case "change": // a medium was put in, or a file system made
		if d := w.present[name]; d != nil {
			d.probed = false
		} else {
			w.addLocked(name)
		}
		return true
	}
	return false
}

func (w *Watch) addLocked(name string) bool {
	if w.present[name] != nil {
		return false
	}
	w.present[name] = &device{gone: make(chan struct{})}
	return true
}

func (w *Watch) removeLocked(name string) bool {
	d := w.present[name]
	if d == nil {
		return false
	}
	close(d.gone)
	delete(w.present, name)
	return true
}

// Find returns the partition with a label, a UUID, or at a path; the others
// are "". Of several with the same label it is the first by name. What it says
// of the state of the file system is fresh.
func (w *Watch) Find(label, uuid, path string) (Partition, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if path != "" {
		node, err := filepath.EvalSymlinks(path)
		if err != nil {
			return Partition{}, false
		}
		return w.partitionLocked(strings.TrimPrefix(node, w.dev+"/"))
	}
	names := make([]string, 0, len(w.present))
	for name := range w.present {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		d := w.present[name]
		if !d.probed {
			w.probe(name, d)
		}
		if d.fs.Type == "" || label != "" && d.fs.Label != label || uuid != "" && !strings.EqualFold(d.fs.UUID, uuid) {
			continue
		}
		return w.partitionLocked(name)
	}
	return Partition{}, false
}

func (w *Watch) partitionLocked(name string) (Partition, bool) {
	d := w.present[name]
	if d == nil {
		return Partition{}, false
	}
	w.probe(name, d)
	return Partition{FileSystem: d.fs, Device: filepath.Join(w.dev, name), Gone: d.gone}, true
}

func (w *Watch) probe(name string, d *device) {
	d.probed, d.fs = true, FileSystem{}
	f, err := os.Open(filepath.Join(w.dev, name))
	if err != nil {
		d.probed = false // an empty card reader, or a node that is not made yet
		return
	}
	defer f.Close()
	d.fs = Probe(f)
}
