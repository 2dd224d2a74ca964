// Command bench compares minked with Docker and podman on this machine: what a
// container costs in time, processor and memory, and, as "bench images", what
// pulling, loading, updating and building images costs, on the disk, too.
// "bench deltas" compares minke's deltas with those of general tools, "bench
// pulls" updates by delta with plain pulls, "bench network" how fast containers
// reach others and are reached.
//
// Every engine runs alone in a network namespace, a data root and a cpuacct
// cgroup of its own, with the same busybox image, made by import. The engines
// take turns within each round, so that whatever else the machine does falls on
// all of them; a figure is the median over the rounds. Processor time is read
// from the cgroup, in which are the daemons, what they start, the containers
// and the clients: nothing is missed that a look at processes would miss. Work
// that the kernel does on its own threads (taking down a network namespace) is
// in nobody's figure.
//
// It needs root, cgroup version 1 accounting and the docker CLI. Engines that
// are not installed are left out. All that it starts it stops, also when
// interrupted; a kill -9 leaves the daemons, and its directory under /var/tmp
// tells whose they are. podman keeps its notes on addresses in /var/lib/cni.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	rounds := flag.Int("rounds", 7, "how often the engines take turns")
	batch := flag.Int("batch", 4, "operations of a kind in one turn")
	only := flag.String("only", "minke,docker,podman", "engines to compare")
	cli := flag.String("cli", "docker", "docker CLI to drive minke and docker with")
	bin := flag.String("bin", "", "directory of our programs (default: build them)")
	before := flag.String("before", "", "directory of our programs as they were, to compare with")
	out := flag.String("out", "bench/out", "directory for the figures")
	show := flag.String("show", "", "only print the tables of figures kept in this file")
	kept := flag.String("pairs", "/var/tmp/minke-pairs", "directory for the images of \"bench images\", kept for the next time")
	flag.Parse()
	if *show != "" {
		exit(reprint(*show))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r := runner{rounds: *rounds, batch: *batch, cli: *cli, bin: *bin, before: *before, pairs: *kept}
	if *before != "" {
		*only += ",before"
	}
	switch flag.Arg(0) {
	case "images":
		exit(r.runImages(ctx, strings.Split(*only, ","), *out))
	case "network":
		exit(r.runNetwork(ctx, strings.Split(*only, ","), *out))
	case "deltas":
		exit(r.runDeltas(ctx, *out))
	case "pulls":
		exit(r.runPulls(ctx, *out))
	}
	exit(r.run(ctx, strings.Split(*only, ","), *out))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A runner is one comparison.
type runner struct {
	rounds, batch int
	cli           string
	bin, before   string // our programs
	pairs         string // where images are kept
	dir           string // everything is below it
	group         string // everybody's cgroup, by its name in each hierarchy
	image         string // file to import
	engines       []*engine
}

func (r *runner) run(ctx context.Context, names []string, out string) (err error) {
	if err := r.begin(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.remove()) }()
	if err := r.prepare(ctx); err != nil {
		return err
	}
	defer func() {
		for _, e := range r.engines {
			err = errors.Join(err, e.close())
		}
	}()
	for _, name := range names {
		if err := r.start(ctx, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	res := newResult(r)
	if err := r.measureAll(ctx, res); err != nil {
		return err
	}
	if err := res.save(out); err != nil {
		return err
	}
	return res.print(os.Stdout)
}

// begin makes the directory that everything is below.
func (r *runner) begin() (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root; try again with sudo")
	}
	if r.dir, err = os.MkdirTemp("/var/tmp", "minke-bench-"); err != nil {
		return err
	}
	r.group = filepath.Base(r.dir)
	return nil
}

// remove takes away the directory and the cgroups.
func (r *runner) remove() error {
	removeGroups(r.group)
	return os.RemoveAll(r.dir)
}

// prepare makes the image and our programs.
func (r *runner) prepare(ctx context.Context) error {
	r.image = filepath.Join(r.dir, "busybox.tar")
	if err := writeImage(r.image); err != nil {
		return err
	}
	if r.bin != "" {
		return nil
	}
	r.bin = filepath.Join(r.dir, "bin")
	if err := os.Mkdir(r.bin, 0o755); err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", r.bin+"/", "./cmd/...")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build our programs: %w\n%s", err, text)
	}
	return nil
}

var engines = map[string]func(*runner, string) (*engine, error){
	"minke":  func(r *runner, dir string) (*engine, error) { return minke(r, r.bin, dir) },
	"before": func(r *runner, dir string) (*engine, error) { return minke(r, r.before, dir) },
	"docker": docker,
	"podman": podman,
}

// start brings an engine up with the image, unless it is not installed.
func (r *runner) start(ctx context.Context, name string) error {
	describe, ok := engines[name]
	if !ok {
		return errors.New("no such engine; there are minke, docker and podman")
	}
	dir := filepath.Join(r.dir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	e, err := describe(r, dir)
	if errors.Is(err, exec.ErrNotFound) {
		fmt.Fprintf(os.Stderr, "bench: %s is left out: %v\n", name, err)
		return nil
	}
	if err != nil {
		return err
	}
	e.name, e.dir = name, dir
	r.engines = append(r.engines, e)
	if err := e.open(ctx, filepath.Join(r.group, name)); err != nil {
		return err
	}
	_, err = e.command(ctx, "import", r.image, image)
	return err
}

// measureAll is the whole plan: memory first, on young daemons, then rounds.
func (r *runner) measureAll(ctx context.Context, res *result) error {
	for _, e := range r.engines {
		if err := e.memory(ctx, res); err != nil {
			return fmt.Errorf("%s: memory: %w", e.name, err)
		}
		if err := e.health(ctx, res); err != nil {
			return fmt.Errorf("%s: health checks: %w", e.name, err)
		}
		if err := e.populate(ctx); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	for n := range r.rounds + 1 { // the first warms up
		began := time.Now()
		for _, e := range r.engines {
			if err := e.turn(ctx, r.batch, res, n > 0); err != nil {
				return fmt.Errorf("%s: %w", e.name, err)
			}
		}
		fmt.Fprintf(os.Stderr, "bench: round %d of %d took %v\n", n, r.rounds, time.Since(began).Round(time.Millisecond))
	}
	return nil
}
