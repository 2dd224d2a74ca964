// Package engine runs containers from images: their life cycle, and the parts
// below it (store, network, volumes, runtime monitor), which it opens and owns.
//
// The nouns:
//
//	Engine      one data root; one process at a time may open it
//	Container   a record, and while it runs a goroutine that watches it
//	execution   a process started beside a container's own
//	Attachment  a client connected to the streams of either
//
// Records are in minke.db and change before a client is told of a change. What
// runs is known by the monitor, which outlives this process; Open compares the
// two and settles the difference: containers that ended meanwhile are recorded
// as ended with their exit code, restart policies apply, half-removed
// containers are removed. A record that cannot be read is set aside under its
// ID in the bucket of damaged records, logged, and the engine starts.
//
// Methods may be called from many goroutines. They take names or ID prefixes
// as people type them, and return errors of package errdef in the words that
// Docker's clients expect. They know nothing of HTTP.
package engine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"

	"github.com/minke-os/minke/engine/internal/buildcache"
	"github.com/minke-os/minke/engine/internal/device"
	"github.com/minke-os/minke/engine/internal/disk"
	"github.com/minke-os/minke/engine/internal/events"
	"github.com/minke-os/minke/engine/internal/network"
	"github.com/minke-os/minke/engine/internal/spec"
	"github.com/minke-os/minke/engine/internal/volume"
	"github.com/minke-os/minke/engine/registry"
	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/runtime"
)

// Config is all that the engine is told. DataRoot, ExecRoot and Runtime are
// required.
type Config struct {
	DataRoot string // survives reboots: records, images, containers, volumes
	ExecRoot string // does not: sockets and the state of what runs
	Runtime  string // path of the minke-runtime program

	Runtimes       map[string]Runtime // others, besides runc and crun if these are on the PATH
	DefaultRuntime string             // of containers that name none; "": our own

	UserRemap string // whose subordinate IDs containers get, see ParseUserRemap; "": the host's own

	CDIDirs []string // of device specifications; nil: the usual ones

	Defaults Defaults // of containers

	Network NetworkOptions // Logger and FaultPoint are this struct's

	Settings

	LogDriver string            // of containers that name none; "" is json-file
	LogOpts   map[string]string // and its options, see CheckLog

	Version string
	Commit  string
	Logger  *slog.Logger

	// FaultPoint, if set, is called at each step of a container's life, for
	// tests that end the process there. See the calls of Engine.at for names.
	FaultPoint func(name string)
}

// Engine is a container engine. Open makes one.
type Engine struct {
	cfg     Config
	log     *slog.Logger
	id      string
	started time.Time

	db          *bbolt.DB
	lostRecords bool // some could not be read when the engine opened
	buildCache  *buildcache.Cache
	images      *store.Store
	registry    atomic.Pointer[registry.Client] // replaced by Reload
	settings    atomic.Pointer[Settings]        // likewise
	net         *network.Host
	volumes     *volume.Store
	rt          *runtime.Monitor
	events      events.Broker
	filters     spec.SeccompCache
	disks       *disk.Watch
	devices     device.Host

	users *remap // nil without user namespaces

	devicesChanged chan struct{} // capacity 1: look at containers' devices

	mu         sync.Mutex
	containers map[string]*Container // by ID
	names      map[string]string     // to ID, without the slash
	execs      map[string]*execution // by ID

	ctx   context.Context // ends with Close
	close context.CancelFunc
	wg    sync.WaitGroup // goroutines that watch containers
}

// at is a place where the process may die.
func (e *Engine) at(name string) {
	if e.cfg.FaultPoint != nil {
		e.cfg.FaultPoint(name)
	}
}

// Open opens the data root and takes up what runs. It fails with errdef.Busy
// if another process has the data root open.
func Open(ctx context.Context, cfg Config) (_ *Engine, err error) {
	for _, dir := range []string{cfg.DataRoot, cfg.ExecRoot, filepath.Join(cfg.DataRoot, "containers")} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("create data directory: %w", err)
		}
	}
	if err := cfg.settleRuntimes(); err != nil {
		return nil, err
	}
	e := &Engine{
		cfg: cfg, log: cfg.Logger, started: time.Now(),
		containers: map[string]*Container{}, names: map[string]string{}, execs: map[string]*execution{},
		disks: disk.New(), devices: device.Host{Dev: "/dev"}, devicesChanged: make(chan struct{}, 1),
	}
	e.ctx, e.close = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			e.Close()
		}
	}()
	e.db, e.lostRecords, err = openDatabase(filepath.Join(cfg.DataRoot, "minke.db"), cfg.Logger)
	if err != nil {
		return nil, err
	}
	if err := e.openRecords(); err != nil {
		return nil, err
	}
	if e.images, err = store.Open(cfg.DataRoot, e.db, store.Options{Logger: cfg.Logger}); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	if err := e.openBuilds(); err != nil {
		return nil, err
	}
	if err := e.apply(cfg.Settings); err != nil {
		return nil, err
	}
	if e.users, err = openRemap(cfg.UserRemap, cfg.DataRoot); err != nil {
		return nil, err
	}
	e.volumes, err = volume.Open(volume.Options{
		Root: filepath.Join(cfg.DataRoot, "volumes"), DB: e.db, Logger: cfg.Logger, Disks: e.findDisk, Changed: e.volumeChanged,
	})
	if err != nil {
		return nil, fmt.Errorf("open volumes: %w", err)
	}
	cfg.Network.Logger, cfg.Network.FaultPoint = cfg.Logger, cfg.FaultPoint
	if e.net, err = network.Open(ctx, e.db, cfg.Network); err != nil {
		return nil, fmt.Errorf("set up networks: %w", err)
	}
	e.rt, err = runtime.Open(ctx, runtime.Options{
		Dir: filepath.Join(cfg.ExecRoot, "runtime"), Binary: cfg.Runtime, Logger: cfg.Logger, OnOOM: e.onOOM,
	})
	if err != nil {
		return nil, fmt.Errorf("start runtime monitor: %w", err)
	}
	e.disks.Rescan()
	if err := e.restore(ctx); err != nil {
		return nil, err
	}
	e.watchDevices()
	return e, nil
}

const closeTimeout = 10 * time.Second

// Close stops serving and leaves containers running under their monitor, to
// be taken up by the next Open. If nothing runs, the monitor, bridges and
// rules go too.
func (e *Engine) Close() error {
	e.close()
	// A service manager loses patience with a monitor that does not answer.
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	var idle bool
	if e.rt != nil {
		states, err := e.rt.List(ctx)
		idle = err == nil && len(states) == 0
	}
	if idle {
		// Ends the waits of watchers, too.
		if err := e.rt.Shutdown(ctx); err != nil {
			e.log.Warn("stop runtime monitor", "err", err)
		}
	}
	if e.rt != nil {
		e.rt.Close()
	}
	e.wg.Wait()
	if e.volumes != nil {
		e.volumes.Close()
	}
	var errs []error
	if e.net != nil {
		if idle {
			errs = append(errs, e.net.Cleanup(ctx))
			removeCgroupParents()
		}
		errs = append(errs, e.net.Close())
	}
	if e.users != nil {
		e.users.ns.Close()
	}
	if e.images != nil {
		errs = append(errs, e.images.Close())
	}
	if e.db != nil {
		errs = append(errs, e.db.Close())
	}
	return errors.Join(errs...)
}

// removeCgroupParents removes the groups that containers were in, of every
// hierarchy. One that is still in use stays.
func removeCgroupParents() {
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		dirs, _ := filepath.Glob(pattern + spec.CgroupParent)
		for _, d := range dirs {
			os.Remove(d)
		}
	}
}

// newID is 64 hex digits, unlike any in taken's keys.
func newID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// containerDir is where a container's own files lie.
func (e *Engine) containerDir(id string) string {
	return filepath.Join(e.cfg.DataRoot, "containers", id)
}
