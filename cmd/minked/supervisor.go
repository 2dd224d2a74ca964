package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/minke-os/minke/supervisor"
	"github.com/minke-os/minke/supervisor/client"
	"github.com/minke-os/minke/supervisor/firewall"
)

// retrySupervisor is how long a supervisor that failed is left alone.
const retrySupervisor = 30 * time.Second

// supervise runs a supervisor until ctx ends. One that fails, for a port that
// is taken or a damaged file, is told of and tried again: the engine and its
// containers do not depend on it.
func supervise(ctx context.Context, cfg *config, own *pipeListener, log *slog.Logger) error {
	for {
		sup, err := newSupervisor(cfg, own, log)
		if err != nil {
			return err
		}
		err = sup.Run(ctx)
		if ctx.Err() != nil {
			return nil
		}
		log.Error("supervisor stopped; containers run on, it is tried again", "in", retrySupervisor, "err", err)
		select {
		case <-time.After(retrySupervisor):
		case <-ctx.Done():
			return nil
		}
	}
}

// newSupervisor makes a supervisor of our own engine, reached in memory, or of
// the one that --engine names.
func newSupervisor(cfg *config, own *pipeListener, log *slog.Logger) (*supervisor.Supervisor, error) {
	var o client.Options
	socket := strings.TrimPrefix(firstUnix(cfg.Hosts), "unix://")
	if cfg.Engine != "" {
		o.Host = cfg.Engine
		socket = strings.TrimPrefix(cfg.Engine, "unix://")
	} else {
		o.Host, o.Dial = "unix:///in-process", own.dial
	}
	c, err := client.New(o)
	if err != nil {
		return nil, err
	}
	o.Headers = map[string]string{"X-Minke-Priority": "low"}
	quiet, err := client.New(o)
	if err != nil {
		return nil, err
	}
	return supervisor.New(supervisor.Config{
		Engine: c, Background: quiet, Dir: filepath.Join(cfg.DataRoot, "supervisor"), Listen: cfg.SupListen, HostTmp: filepath.Join(cfg.ExecRoot, "supervisor"),
		BootDir: cfg.BootDir, Preload: cfg.preload(), LED: cfg.LED, EngineSocket: socket, Version: version, Logger: log,
		Firewall: firewall.Apply, WatchFirewall: firewall.Watch,
	}), nil
}

func (c *config) preload() string { return cmp.Or(c.Preload, filepath.Join(c.DataRoot, "apps.json")) }

func firstUnix(hosts []string) string {
	for _, h := range hosts {
		if strings.HasPrefix(h, "unix://") {
			return h
		}
	}
	return ""
}

// A pipeListener is a listener within the process.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

var errClosed = errors.New("listener closed")

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, errClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return pipeAddr{} }

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case l.conns <- far:
		return near, nil
	case <-l.done:
		return nil, errClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "in-process" }
