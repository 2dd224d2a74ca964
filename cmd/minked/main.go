// Command minked is the device daemon: the container engine and the supervisor
// in one process.
//
// This package is wiring: flags and the configuration file become the Configs
// of the packages that do the work, which are started together and stopped
// together. Flags have dockerd's names.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/minke-os/minke/engine"
	"github.com/minke-os/minke/engine/api"
)

// version is set by the Makefile.
var (
	version = "0.0.0-dev"
	commit  = ""
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "minked:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	cfg, err := parse(args)
	if err != nil || cfg == nil {
		return err
	}
	if cfg.validate {
		fmt.Println("configuration OK")
		return nil
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root to make namespaces, mounts and networks; try again with sudo")
	}
	// A pull's buffers are most of the heap; the containers need the memory
	// more than we the time: the collector costs nothing that can be measured.
	debug.SetGCPercent(25)
	runtime.MemProfileRate = 0 // nobody reads it, and its table is a megabyte
	manager := serviceManager()
	level := new(slog.LevelVar)
	level.Set(cfg.level())
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)

	release, err := writePidFile(cfg.PidFile)
	if err != nil {
		return err
	}
	defer release()
	group, ctx := errgroup.WithContext(ctx)
	inProcess := newPipeListener()
	var e *engine.Engine
	if cfg.Engine == "" {
		if e, err = openEngine(ctx, cfg, log); err != nil {
			return err
		}
		defer func() {
			if err := e.Close(); err != nil {
				log.Error("close engine", "err", err)
			}
		}()
		listeners, err := listen(cfg, manager, log)
		if err != nil {
			return err
		}
		handler := withDebug(api.New(e, log), e.Debugs)
		if cfg.Supervisor {
			own := withFaults(handler, faultPoint(os.Getenv("MINKE_DIE_AT")))
			group.Go(func() error { return serve(ctx, inProcess, own) })
		}
		for _, l := range listeners {
			log.Info("API listens", "address", l.Addr())
			group.Go(func() error { return serve(ctx, l, handler) })
		}
		group.Go(func() error { return manager.watch(ctx, e.Alive) })
	}
	if cfg.Supervisor {
		group.Go(func() error { return supervise(ctx, cfg, inProcess, log) })
	}
	group.Go(func() error {
		r := reloader{args: args, manager: manager, level: level, engine: e, log: log}
		return r.run(ctx, cfg, hangup)
	})
	tell := func(state string) {
		if err := manager.notify(state); err != nil {
			log.Warn("service manager", "err", err)
		}
	}
	tell("READY=1")
	defer context.AfterFunc(ctx, func() { tell("STOPPING=1") })()
	return group.Wait()
}

func openEngine(ctx context.Context, cfg *config, log *slog.Logger) (*engine.Engine, error) {
	binary, err := runtimeBinary(cfg.Runtime)
	if err != nil {
		return nil, err
	}
	containers, err := cfg.defaults.engine()
	if err != nil {
		return nil, err
	}
	return engine.Open(ctx, engine.Config{
		DataRoot: cfg.DataRoot, ExecRoot: cfg.ExecRoot, Runtime: binary, Network: cfg.network(), Defaults: containers,
		UserRemap: cfg.UserRemap, CDIDirs: cfg.CDIDirs,
		Runtimes: cfg.Runtimes, DefaultRuntime: cfg.DefaultRuntime,
		Settings: cfg.settings(), LogDriver: cfg.LogDriver, LogOpts: cfg.LogOpts, Version: version, Commit: commit, Logger: log,
		FaultPoint: faultPoint(os.Getenv("MINKE_DIE_AT")),
	})
}

// faultPoint ends this process at the step of that name, as kill -9 would; for
// tests. Nothing is nil, which costs nothing.
func faultPoint(die string) func(string) {
	if die == "" {
		return nil
	}
	return func(name string) {
		if name == die {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
}

// withFaults has a fault point before and after each request that changes
// something: request-1 and request-2, request-3 and request-4, and so on.
func withFaults(h http.Handler, at func(string)) http.Handler {
	if at == nil {
		return h
	}
	var n atomic.Int64
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			h.ServeHTTP(w, r)
			return
		}
		at(fmt.Sprintf("request-%d", n.Add(1)))
		h.ServeHTTP(w, r)
		at(fmt.Sprintf("request-%d", n.Add(1)))
	})
}

// serve answers requests until ctx ends, then lets short ones finish.
func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		limit, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if s.Shutdown(limit) != nil {
			s.Close() // events and logs that are followed
		}
	}()
	err := s.Serve(l)
	if errors.Is(err, http.ErrServerClosed) {
		<-done
		return nil
	}
	return err
}

// writePidFile refuses if the process it names lives.
func writePidFile(path string) (release func(), err error) {
	if path == "" {
		return func() {}, nil
	}
	if data, err := os.ReadFile(path); err == nil {
		pid, _ := strconv.Atoi(strings.TrimSpace(string(data)))
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && strings.HasPrefix(filepath.Base(exe), "minked") {
			return nil, fmt.Errorf("process %d is running already (%s); stop it first", pid, path)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		return nil, err
	}
	return func() { os.Remove(path) }, nil
}

// runtimeBinary finds minke-runtime: where a flag says, or beside this program.
func runtimeBinary(flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(self), "minke-runtime")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("minke-runtime is not beside %s; install it there or name it with --runtime-path", self)
	}
	return path, nil
}
