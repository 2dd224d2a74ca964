// Package build makes images from Dockerfiles, one instruction at a time, as
// Docker's classic builder does: every instruction yields an image, whose
// parent is that of the instruction before. These images are the cache, so it
// survives restarts, and an instruction is skipped when a child of the current
// image has the same history line and configuration. The history line of COPY
// and ADD has a digest of the copied files, without their times.
//
// The build context goes into the store as a layer: the store unpacks foreign
// tars safely already, and what is copied from it later is there and is not
// written again. COPY and ADD make a layer from a tar stream, without a
// container. RUN is the only instruction that needs one; the engine runs it,
// see Runner.
//
// Text on Output is exactly the classic builder's where programs read it
// ("Step 1/5 : FROM x", " ---> 7a80323521cc", "Using cache", "Running in",
// "Successfully built"). Instructions that only change the configuration run
// nothing and so print no "Running in".
//
// Stages that do not need each other are built at once, a command on each
// processor; what they say comes one stage after the other, as if they had been.
//
// A failed or cancelled build leaves the images of the instructions that
// succeeded, as cache; everything else is garbage that it collects itself, or
// the next GC after a crash. Builds may run at once.
package build

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/minke-os/minke/engine/build/dockerfile"
	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/oci"
)

// Deps are what a build needs from the engine.
type Deps struct {
	Store  *store.Store
	Runner Runner
	// Pull fetches a base image that is not here, telling progress on out.
	// Nil makes every base image local.
	Pull func(ctx context.Context, ref oci.Reference, p oci.Platform, out io.Writer) (oci.ImageID, error)
}

// A Runner runs the command of a RUN instruction in a container.
type Runner interface {
	// Run creates a container, calls spec.Started with its ID, runs the
	// command to its end and, if the exit code is 0, commits what it changed.
	// The container is gone when Run returns, whatever happened.
	Run(ctx context.Context, spec RunSpec) (RunResult, error)
}

// A RunSpec is one command to run.
type RunSpec struct {
	Parent oci.ChainID                     // what the container's root shows
	Image  oci.ImageID                     // whose parent layer that is, "" for scratch
	Config dockerspec.DockerOCIImageConfig // environment, user, directory; no command, no entrypoint
	Cmd    []string                        // complete, with the shell if any
	Host   HostConfig
	Mounts []RunMount

	Started        func(containerID string)
	Stdout, Stderr io.Writer
}

// A RunMount is what RUN --mount puts into the container for one command. It
// is no part of the layer, nor is the mount point if the mount made it.
type RunMount struct {
	Type     dockerfile.MountType // bind, cache, tmpfs or secret
	Target   string               // absolute; "" for a secret in the environment alone
	ReadOnly bool

	// What bind shows and a new cache begins with: a file or directory of a
	// stack of layers. A bind that is not read-only loses what is written.
	Layers oci.ChainID
	Path   string

	CacheID string             // cache
	Sharing dockerfile.Sharing // cache; "" is shared
	Mode    os.FileMode        // cache, secret
	UID     int
	GID     int
	Size    int64  // tmpfs, in bytes; 0 is as much as there is
	Secret  []byte // secret: never to be written to the data root
	Env     string // secret: variable to have it in, "" for none
}

// A RunResult is how the command ended.
type RunResult struct {
	ExitCode int
	Layer    store.Layer // if ExitCode is 0
}

// HostConfig is what POST /build says about the containers of RUN.
type HostConfig struct {
	NetworkMode  string
	Memory       int64
	MemorySwap   int64
	CPUShares    int64
	CPUQuota     int64
	CPUPeriod    int64
	CPUSetCPUs   string
	CPUSetMems   string
	CgroupParent string
	ShmSize      int64
	ExtraHosts   []string
	SecurityOpt  []string
	Isolation    string
	Ulimits      string   // JSON, as the API has it
	Volumes      []string // binds; an extension of balenaEngine
}

// Options are what POST /build says about the build.
type Options struct {
	Dockerfile string // path in the context; "Dockerfile" if empty
	Tags       []oci.Reference
	Target     string
	Args       map[string]*string // nil takes no value and so leaves a default
	Labels     map[string]string
	NoCache    bool
	Pull       bool     // look for a newer base image even if there is one
	CacheFrom  []string // images whose history may stand in for instructions
	Platform   oci.Platform
	Host       HostConfig
	Secrets    map[string][]byte // for RUN --mount=type=secret, by ID
	Remove     bool              // print that intermediate containers are removed
	Quiet      bool              // print nothing but errors
}

// Output is where a build talks.
type Output struct {
	Stdout, Stderr io.Writer
	// ImageID is called with the image of each stage, if not nil.
	ImageID func(oci.ImageID)
}

// An ExitError is a RUN instruction whose command failed.
type ExitError struct {
	Command string
	Code    int
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("The command '%s' returned a non-zero code: %d", e.Command, e.Code)
}

// Build makes an image from a context: a tar, plain or compressed, or the text
// of a single Dockerfile.
func Build(ctx context.Context, d Deps, o Options, contextTar io.Reader, out Output) (oci.ImageID, error) {
	release, err := d.Store.Lease("")
	if err != nil {
		return "", err
	}
	defer d.Store.GC(context.WithoutCancel(ctx)) // of the context; what fails here the next GC does
	defer release()

	b := &builder{Deps: d, o: o, out: out, now: time.Now().UTC()}
	if o.Quiet {
		b.out.Stdout = io.Discard
	}
	if b.o.Platform == (oci.Platform{}) {
		b.o.Platform = oci.Host()
	}
	defer b.close()
	if err := b.readContext(ctx, contextTar); err != nil {
		return "", err
	}
	p, err := parsePlan(b.dockerfile)
	if err != nil {
		return "", err
	}
	if err := p.prepare(o); err != nil {
		return "", err
	}
	id, err := b.build(ctx, p)
	if err != nil {
		return "", err
	}
	return id, b.finish(id)
}

// A builder is one build on its way.
type builder struct {
	Deps
	o   Options
	out Output
	now time.Time

	dockerfile []byte
	files      *source     // the context
	filesChain oci.ChainID // its layer

	visible      sync.Once // guards the layer of visibleContext
	visibleChain oci.ChainID
	visibleErr   error

	args   *args
	stages []*stage
	steps  int
	orders *order
	slots  chan struct{} // one for each stage that may work

	mu      sync.Mutex // guards sources
	sources map[oci.ChainID]*source
}

func (b *builder) close() {
	if b.files != nil {
		b.files.close()
	}
	for _, s := range b.sources {
		s.close()
	}
}

// build works through the plan's stages up to the target, at once as far as
// they do not need each other.
func (b *builder) build(ctx context.Context, p *plan) (oci.ImageID, error) {
	for _, w := range p.Warnings {
		fmt.Fprintf(b.out.Stderr, "[WARNING]: %s\n", w)
	}
	b.args, b.steps = newArgs(b.o), p.steps()
	for i, arg := range p.Global {
		fmt.Fprintf(b.out.Stdout, "Step %d/%d : %s\n", i+1, b.steps, arg)
		if err := b.args.global(arg, p.lex); err != nil {
			return "", err
		}
	}
	b.makeStages(p)
	work, ctx := errgroup.WithContext(ctx)
	for _, st := range b.stages {
		work.Go(func() error {
			defer b.orders.end(st.index)
			defer close(st.done)
			return st.build(ctx)
		})
	}
	if err := work.Wait(); err != nil {
		return "", err
	}
	for _, st := range b.stages {
		maps.Copy(b.args.consumed, st.args.consumed)
	}
	return b.stages[len(b.stages)-1].image, nil
}

// makeStages gives each stage its voice and the number of its first step.
func (b *builder) makeStages(p *plan) {
	b.slots = make(chan struct{}, runtime.GOMAXPROCS(0))
	b.orders = newOrder(len(p.Stages), b.out.Stderr)
	step := len(p.Global)
	for i := range p.Stages {
		lex := *p.lex // it has scratch space
		st := &stage{
			builder: b, index: i, name: p.Stages[i].Name, plan: &p.Stages[i], lex: &lex, args: b.args.stage(), step: step,
			done: make(chan struct{}),
		}
		st.own, st.out = b.orders.voices(i, b.out)
		step += 1 + len(p.Stages[i].Commands)
		b.stages = append(b.stages, st)
	}
}

// finish names the image and says so.
func (b *builder) finish(id oci.ImageID) error {
	if unused := b.args.unused(); len(unused) > 0 {
		fmt.Fprintf(b.out.Stdout, "[Warning] One or more build-args %v were not consumed\n", unused)
	}
	fmt.Fprintf(b.out.Stdout, "Successfully built %s\n", id.Short())
	for _, ref := range b.o.Tags {
		if err := b.Store.Tag(id, ref); err != nil {
			return err
		}
		fmt.Fprintf(b.out.Stdout, "Successfully tagged %s\n", ref.Familiar())
	}
	return nil
}

// sorted are a map's keys in order.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
