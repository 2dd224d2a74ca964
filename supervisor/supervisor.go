// Package supervisor keeps the applications of one device as their target
// state wants them. It is the state engine and the wiring of its parts:
//
//	appsjson what came with the medium; pure
//	contract what services require of the device; pure
//	model    the target state, and what it means in engine objects
//	observe  what the engine has
//	plan     what to do next; pure
//	apply    one step, through the Docker API
//	lock     update locks
//	logs     one stream of all containers' output
//	state    what survives a power cut
//	api      the Supervisor API on port 48484
//	cloud    the link to a fleet server, on a device that has one
//	bootconfig, host   config.json, and what of the host we may change
//	firewall who reaches the API, and the host
//
// It knows the engine as a Docker API client only, so that it works the same
// inside minked and beside a stock Docker. One goroutine decides and acts;
// requests that act (restart, purge, stop) are jobs on that goroutine, so two
// of them never disturb each other. Downloads run beside it.
//
// What always holds: applying a target that is already reached asks the engine
// for nothing but listings. After a crash or a power cut Run goes on from the
// stored target and what the engine has, with no network needed.
package supervisor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/minke-os/minke/supervisor/api"
	"github.com/minke-os/minke/supervisor/apply"
	"github.com/minke-os/minke/supervisor/bootconfig"
	"github.com/minke-os/minke/supervisor/client"
	"github.com/minke-os/minke/supervisor/cloud"
	"github.com/minke-os/minke/supervisor/firewall"
	"github.com/minke-os/minke/supervisor/host"
	"github.com/minke-os/minke/supervisor/lock"
	"github.com/minke-os/minke/supervisor/logs"
	"github.com/minke-os/minke/supervisor/model"
	"github.com/minke-os/minke/supervisor/observe"
	"github.com/minke-os/minke/supervisor/plan"
	"github.com/minke-os/minke/supervisor/state"
)

// Port is where the Supervisor API listens unless config.json says otherwise.
const Port = 48484

// An Engine is a Docker API client; *client.Client is one.
type Engine interface {
	observe.Engine
	apply.Engine
	logs.Engine
	Puller
	Events(context.Context, client.EventsListOptions) client.EventsResult
	ImageList(context.Context, client.ImageListOptions) (client.ImageListResult, error)
	ImageRemove(context.Context, string, client.ImageRemoveOptions) (client.ImageRemoveResult, error)
	Info(context.Context, client.InfoOptions) (client.SystemInfoResult, error)
}

// A Puller is the part of a Docker API client that downloads images.
type Puller interface {
	ImagePull(context.Context, string, client.ImagePullOptions) (client.ImagePullResponse, error)
}

// Config is what a supervisor is made of. Engine and Dir are needed.
type Config struct {
	Engine       Engine
	Background   Puller   // the same engine, for pulls that give way to what runs; Engine if nil
	Dir          string   // durable state
	Listen       []string // host:port; nil for loopback and the supervisor's own network
	HostTmp      string   // update locks; /tmp/balena-supervisor if empty
	BootDir      string   // where config.json and device-type.json are, "" for neither
	Preload      string   // apps.json, for a device that was never given a target; "" for none
	EngineSocket string   // host path given to services that ask for the engine
	Version      string
	HostRoot     string                     // of the host's /boot, /dev, /proc, /run and /sys; "" but in tests
	SystemBus    string                     // address of the system D-Bus; the usual one if empty
	LED          string                     // brightness file of the LED that blinks
	Transport    http.RoundTripper          // to the fleet server; nil for the usual one
	Firewall     func(firewall.Rules) error // makes the host's, if it is another; nil for none
	Logger       *slog.Logger

	// WatchFirewall calls lost when it may be gone; nil for none.
	WatchFirewall func(ctx context.Context, lost func()) error
}

// A Supervisor is made by New and does its work in Run.
type Supervisor struct {
	cfg         Config
	log         *slog.Logger
	config      *bootconfig.File
	host        *host.Host
	link        *cloud.Link // nil on a device that nobody manages
	store       *state.Store
	hub         *logs.Hub
	locks       *lock.Locks
	applier     apply.Applier
	wake        chan struct{} // capacity 1: look again
	jobs        chan job
	gateway     gateway
	turn        chan struct{} // capacity 1: held by the pull that gives way
	wallProblem string        // the loop's: why there is no firewall
	wallPort    uint16        // the loop's: of the table that there is, and no other

	configured configuring // the loop's

	mu          sync.Mutex // guards the fields below
	boot        boot
	body        []byte // the target as it came
	target      model.Target
	want        plan.Want
	force       bool
	applying    bool
	problem     string                 // why the target is not reached, for people
	hostProblem string                 // why the host is not what it says
	offline     bool                   // the fleet server takes no connections
	doing       map[string]string      // app/service -> Installing, Starting, Stopping
	fetching    map[string]*download   // by image reference
	failures    map[string]failure     // by step
	reasons     map[string]api.Reason  // app/service -> why it was stopped or replaced last
	locked      map[model.AppID]bool   // update locks that we hold
	handed      map[string]bool        // old containers that may go
	commits     map[model.AppID]string // last release that settled
	fresh       map[string]bool        // app/service that starts after a reboot, of which a container was made in this boot
	wrong       map[string]string      // variables that were said to be wrong, with their values
	images      disk                   // that the last pull filled
	trial       *trial                 // of a new target; nil for one that has shown that it works
}

// New makes a supervisor that does nothing yet.
func New(cfg Config) *Supervisor {
	cfg.HostTmp = cmp.Or(cfg.HostTmp, "/tmp/balena-supervisor")
	cfg.EngineSocket = cmp.Or(cfg.EngineSocket, "/var/run/docker.sock")
	if cfg.Background == nil {
		cfg.Background = cfg.Engine
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	locks := lock.New(filepath.Join(cfg.HostTmp, "services"))
	return &Supervisor{
		cfg: cfg, log: cfg.Logger, config: bootconfig.At(filepath.Join(cfg.BootDir, "config.json")),
		host:     host.New(host.Options{Bus: cfg.SystemBus, Root: cfg.HostRoot, Data: cfg.Dir, LED: cfg.LED, BootDir: cfg.BootDir}),
		hub:      logs.New(cfg.Engine),
		locks:    locks,
		applier:  apply.Applier{Engine: cfg.Engine, Locks: locks},
		wake:     make(chan struct{}, 1),
		jobs:     make(chan job),
		gateway:  gateway{ready: make(chan struct{}, 1)},
		turn:     make(chan struct{}, 1),
		doing:    map[string]string{},
		fetching: map[string]*download{},
		failures: map[string]failure{}, reasons: map[string]api.Reason{},
		locked:  map[model.AppID]bool{},
		handed:  map[string]bool{},
		commits: map[model.AppID]string{},
		fresh:   map[string]bool{},
	}
}

// Run supervises until ctx ends, and returns when everything it started has
// stopped. Containers run on.
func (s *Supervisor) Run(ctx context.Context) error {
	if err := s.open(); err != nil {
		return fmt.Errorf("supervisor: %w", err)
	}
	listeners, err := s.listen()
	if err != nil {
		return fmt.Errorf("supervisor: %w", err)
	}
	s.hub.System("Supervisor starting")
	s.loadTables(ctx)
	g, ctx := errgroup.WithContext(ctx)
	server := &http.Server{
		Handler:           api.New(s, s.log),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       time.Minute,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	for _, l := range listeners {
		s.log.Info("supervisor API", "address", l.Addr().String())
		g.Go(func() error { return served(server.Serve(l)) })
	}
	if s.cfg.Listen == nil {
		g.Go(func() error { return s.listenOnGateway(ctx, server) })
	}
	if s.link != nil {
		g.Go(func() error { return s.link.Run(ctx) })
		g.Go(func() error { s.watchConnection(ctx); return nil })
	}
	g.Go(func() error { s.watch(ctx); return nil })
	g.Go(func() error { s.watchWall(ctx); return nil })
	g.Go(func() error { s.loop(ctx); return nil })
	g.Go(func() error {
		<-ctx.Done()
		return server.Close()
	})
	err = g.Wait()
	s.unprotect()
	if err != nil {
		return fmt.Errorf("supervisor: %w", err)
	}
	return nil
}

func served(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// open reads what an earlier run left.
func (s *Supervisor) open() error {
	var err error
	if s.boot, err = readBoot(s.cfg.BootDir); err != nil {
		return err
	}
	if s.store, err = state.Open(s.cfg.Dir, s.boot.UUID, s.log); err != nil {
		return err
	}
	if err := s.openLink(); err != nil {
		return err
	}
	if err := s.locks.ReleaseAll(); err != nil {
		return err
	}
	if err := s.readFresh(); err != nil {
		return err
	}
	if err := s.adoptStored(); err != nil {
		// A newer program may be stricter. The containers go on as they are.
		s.log.Error("the stored target state is not applied", "err", err)
		s.problem = err.Error()
	}
	if err := s.preload(); err != nil {
		s.log.Error("the applications that came with the medium do not start", "err", err)
		s.hub.System("The applications that came with the medium do not start: " + err.Error())
		s.problem = err.Error()
	}
	return nil
}

func (s *Supervisor) listen() ([]net.Listener, error) {
	addrs := s.cfg.Listen
	if addrs == nil {
		addrs = []string{net.JoinHostPort("127.0.0.1", s.port())}
	}
	var out []net.Listener
	for _, a := range addrs {
		l, err := net.Listen("tcp", a)
		if err != nil {
			for _, open := range out {
				open.Close()
			}
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

func (s *Supervisor) port() string { return strconv.Itoa(cmp.Or(s.bootNow().ListenPort, Port)) }

// A gateway is the supervisor's address on its own container network, which
// exists only once that network does.
type gateway struct{ ready chan struct{} }

// exists is told whenever the network was seen.
func (g gateway) exists() {
	select {
	case g.ready <- struct{}{}:
	default:
	}
}

// listenOnGateway serves services that carry the supervisor-api label. The
// network may be removed and made again: its listener ends with the server
// only, since a Linux socket keeps its address.
func (s *Supervisor) listenOnGateway(ctx context.Context, server *http.Server) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.gateway.ready:
		}
		l, err := net.Listen("tcp", net.JoinHostPort(model.SupervisorGateway, s.port()))
		if err != nil {
			s.log.Debug("no listener on the supervisor network yet", "err", err)
			continue
		}
		s.log.Info("supervisor API", "address", l.Addr().String())
		return served(server.Serve(l))
	}
}
