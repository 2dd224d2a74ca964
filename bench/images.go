package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/minke-os/minke/bench/pairs"
)

// imageEngine is an engine on a disk of its own, with a registry beside it.
type imageEngine struct {
	*engine
	disk     *disk
	registry *exec.Cmd
	pull     []string // flags
	images   place    // the registry's, which is not counted
}

// preparePairs makes the images and a directory for everything else.
func (r *runner) preparePairs(ctx context.Context, programs ...string) (made []pairs.Pair, err error) {
	if _, err := lookUp(programs...); err != nil {
		return nil, fmt.Errorf("%w; it is in Debian", err)
	}
	if made, err = pairs.Make(ctx, r.pairs, "."); err != nil {
		return nil, err
	}
	return made, r.begin()
}

// runImages compares pulls, loads and builds.
func (r *runner) runImages(ctx context.Context, names []string, out string) (err error) {
	made, err := r.preparePairs(ctx, "docker-registry", "mkfs.ext4", "losetup", "mmdebstrap", "npm")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.remove()) }()
	if err := r.prepare(ctx); err != nil {
		return err
	}
	var engines []*imageEngine
	defer func() {
		for _, e := range engines {
			err = errors.Join(err, e.shut())
		}
	}()
	if err := r.keepRegistry(ctx, made); err != nil {
		return fmt.Errorf("fill the registry: %w", err)
	}
	for _, name := range names {
		e, err := r.startOnDisk(ctx, name, filepath.Join(r.dir, name))
		if e != nil {
			engines = append(engines, e)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	res := newImageResult(r, made)
	for n := range r.rounds {
		for _, e := range engines {
			began := time.Now()
			if err := e.imageTurn(ctx, r, made, res); err != nil {
				return fmt.Errorf("%s: %w", e.name, err)
			}
			fmt.Fprintf(os.Stderr, "bench: round %d of %d: %s took %v\n", n+1, r.rounds, e.name, time.Since(began).Round(time.Second))
		}
	}
	if err := res.save(out); err != nil {
		return err
	}
	return res.print(os.Stdout)
}

// registryDir is kept with the images: to compress them takes minutes.
func (r *runner) registryDir() string { return filepath.Join(r.pairs, "registry") }

// keepRegistry fills it with all images, once.
func (r *runner) keepRegistry(ctx context.Context, made []pairs.Pair) error {
	full := filepath.Join(r.registryDir(), "full")
	if _, err := os.Stat(full); err == nil {
		return nil
	}
	err := r.fillRegistry(ctx, func(e *engine) error {
		for _, p := range made {
			if err := e.publish(ctx, p); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return os.WriteFile(full, nil, 0o644)
}

// publish loads both versions of an image and pushes them.
func (e *engine) publish(ctx context.Context, p pairs.Pair) error {
	for archive, tag := range map[string]string{p.Old: p.OldTag, p.New: p.NewTag} {
		if _, err := e.command(ctx, "load", "-i", archive); err != nil {
			return err
		}
		if _, err := e.command(ctx, "push", tag); err != nil {
			return err
		}
	}
	return nil
}

// fillRegistry lets a minked that is not measured fill the registry.
func (r *runner) fillRegistry(ctx context.Context, fill func(*engine) error) (err error) {
	dir := filepath.Join(r.dir, "filler")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	e, err := minke(r, r.bin, dir)
	if err != nil {
		return err
	}
	e.name, e.dir = "filler", dir
	r.engines = append(r.engines, e)
	filler := &imageEngine{engine: e}
	defer func() { err = errors.Join(err, filler.shut()) }()
	if err := e.open(ctx, filepath.Join(r.group, "filler")); err != nil {
		return err
	}
	if err := filler.startRegistry(r); err != nil {
		return err
	}
	return fill(e)
}

// startOnDisk brings an engine up on a new disk.
func (r *runner) startOnDisk(ctx context.Context, name, dir string) (*imageEngine, error) {
	describe, ok := engines[name]
	if !ok {
		return nil, errors.New("no such engine; there are minke, docker and podman")
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	disk, err := newDisk(dir)
	if err != nil {
		return nil, err
	}
	described, err := describe(r, dir)
	if err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			fmt.Fprintf(os.Stderr, "bench: %s is left out: %v\n", name, err)
			err = nil
		}
		return nil, errors.Join(err, disk.close())
	}
	e := &imageEngine{engine: described, disk: disk}
	e.name, e.dir = name, dir
	r.engines = append(r.engines, described)
	if name == "podman" {
		e.pull = []string{"--tls-verify=false"}
		e.cli = append(e.cli, "--storage-driver", "overlay")
	}
	if err := e.open(ctx, filepath.Join(r.group, name)); err != nil {
		return e, err
	}
	// What an engine keeps for a while on its way is written, too.
	tmp := filepath.Join(dir, "tmp")
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return e, err
	}
	e.env = append(e.env, "TMPDIR="+tmp, "DOCKER_BUILDKIT=0", "BUILDAH_FORMAT=docker")
	return e, e.startRegistry(r)
}

// startRegistry starts Debian's registry in the engine's network namespace.
func (e *imageEngine) startRegistry(r *runner) error {
	config := filepath.Join(r.dir, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: %s\n  cache:\n    blobdescriptor: inmemory\nhttp:\n  addr: 127.0.0.1:5000\n",
		r.registryDir())
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	e.images = place{group: filepath.Join(r.group, "registry-"+e.name), netns: e.place.netns}
	if err := os.MkdirAll(filepath.Join(cpuacct, e.images.group, daemonGroup), 0o755); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(r.dir, "registry.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("docker-registry", "serve", config)
	cmd.Stdout, cmd.Stderr, cmd.Env = log, log, append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	if err := e.images.start(daemonGroup, cmd); err != nil {
		return err
	}
	e.registry = cmd
	return e.awaitRegistry()
}

func (e *imageEngine) awaitRegistry() error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		probe := exec.Command("curl", "-sf", "http://"+pairs.Registry+"/v2/")
		if err := e.images.start(daemonGroup, probe); err != nil {
			return err
		}
		err := probe.Wait()
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// shut ends the engine, its registry and its disk.
func (e *imageEngine) shut() error {
	var errs []error
	if e.process != nil || e.daemon == nil {
		errs = append(errs, e.close())
	}
	if e.registry != nil {
		e.registry.Process.Signal(syscall.SIGTERM)
		e.registry.Wait()
	}
	if e.disk != nil {
		errs = append(errs, e.disk.close())
	}
	return errors.Join(errs...)
}

// imageTurn does everything once: a base system comes, then what is built on it
// and beside it, then the second version of each.
func (e *imageEngine) imageTurn(ctx context.Context, r *runner, made []pairs.Pair, res *imageResult) error {
	do := func(name string, args ...string) error {
		s, err := e.measureImage(ctx, args)
		if err == nil {
			res.add(name, e.name, s)
		}
		return err
	}
	byName := map[string]pairs.Pair{}
	for _, p := range made {
		byName[p.Name] = p
	}
	system := byName["os"]
	if err := do("pull a base system", e.pulling(system.OldTag)...); err != nil {
		return err
	}
	for _, p := range made {
		if _, err := e.command(ctx, e.pulling(p.OldTag)...); err != nil {
			return err
		}
	}
	for _, p := range made {
		if err := do("pull the update: "+p.Name, e.pulling(p.NewTag)...); err != nil {
			return err
		}
	}
	if err := e.removeImages(ctx); err != nil {
		return err
	}
	if err := do("load a base system", "load", "-i", system.Old); err != nil {
		return err
	}
	for _, name := range []string{"os", "app"} {
		if _, err := e.command(ctx, "load", "-i", byName[name].Old); err != nil {
			return err
		}
		if err := do("load the update: "+name, "load", "-i", byName[name].New); err != nil {
			return err
		}
	}
	if err := e.removeImages(ctx); err != nil {
		return err
	}
	return e.buildTurn(ctx, r, byName["app"], do)
}

func (e *imageEngine) pulling(tag string) []string {
	return slices.Concat([]string{"pull"}, e.pull, []string{tag})
}

// buildTurn builds an application of two stages, then again after a change of
// one of its files.
func (e *imageEngine) buildTurn(ctx context.Context, r *runner, base pairs.Pair, do func(string, ...string) error) error {
	if _, err := e.command(ctx, "load", "-i", base.Old); err != nil {
		return err
	}
	dir := filepath.Join(r.dir, "context")
	if err := writeContext(dir, base.OldTag, "first"); err != nil {
		return err
	}
	args := []string{"build", "-q", "--network", "none", "-t", "localhost/built", dir}
	if e.name == "podman" {
		args = slices.Insert(args, 1, "--layers", "--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096")
	}
	if err := do("build two stages", args...); err != nil {
		return err
	}
	if err := writeContext(dir, base.OldTag, "second"); err != nil {
		return err
	}
	if err := do("build them again, one file changed", args...); err != nil {
		return err
	}
	return e.removeImages(ctx)
}

// writeContext makes the files of a build; the last of them differs.
func writeContext(dir, base, last string) error {
	dockerfile := "FROM " + base + ` AS build
WORKDIR /src
COPY . .
RUN mkdir /out && for i in 1 2 3 4 5 6 7 8; do cat *.txt | sha512sum > /out/$i && cat *.txt >> /out/all; done
FROM ` + base + `
RUN mkdir -p /app/bin && cp -r /usr/lib/python3 /app/bin/
COPY --from=build /out /app/out
ENV MODE=production
CMD ["/bin/sh"]
`
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, text := range map[string]string{"Dockerfile": dockerfile, "last.txt": last} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for i := range 100 {
		text := strings.Repeat(fmt.Sprintf("line of file %d\n", i), 1500)
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%02d.txt", i)), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (e *imageEngine) removeImages(ctx context.Context) error {
	args := []string{"image", "prune", "-a", "-f"}
	if e.name == "podman" {
		args = []string{"rmi", "-a", "-f"}
	}
	_, err := e.command(ctx, args...)
	return err
}

// measureImage runs one command and looks at the disk before it, when it
// returns, and when all is written.
func (e *imageEngine) measureImage(ctx context.Context, args []string) (s imageSample, err error) {
	before, err := e.disk.settle()
	if err != nil {
		return s, err
	}
	if err := e.place.settle(); err != nil {
		return s, err
	}
	cpu, err := e.place.used("")
	if err != nil {
		return s, err
	}
	pids, err := e.place.pids()
	if err != nil {
		return s, err
	}
	for _, pid := range pids { // 5 resets the peak, see proc(5)
		os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
	}
	began := time.Now()
	client, err := e.peak(ctx, args)
	if err != nil {
		return s, err
	}
	s.Wall = time.Since(began).Seconds()
	back, err := e.disk.written()
	if err != nil {
		return s, err
	}
	for _, pid := range pids {
		s.Peak += highWater(pid)
	}
	if e.daemon == nil {
		s.Peak = client
	}
	if err := e.place.settle(); err != nil {
		return s, err
	}
	after, err := e.disk.settle()
	if err != nil {
		return s, err
	}
	cpuAfter, err := e.place.used("")
	s.CPU = (cpuAfter - cpu).Seconds()
	s.Written, s.Late, s.Added = mb(after.written-before.written), mb(after.written-back), mb(after.used-before.used)
	return s, err
}

func mb(n int64) float64 { return float64(n) / 1e6 }

// peak runs the CLI and gives the most memory that it had, in MB.
func (e *imageEngine) peak(ctx context.Context, args []string) (float64, error) {
	cmd := exec.CommandContext(ctx, e.cli[0], slices.Concat(e.cli[1:], args)...)
	var errOut strings.Builder
	cmd.Stderr, cmd.Env = &errOut, e.env
	if err := e.place.start(clientGroup, cmd); err != nil {
		return 0, err
	}
	if err := cmd.Wait(); err != nil {
		return 0, fmt.Errorf("%s %s: %w: %s", e.name, strings.Join(args, " "), err, errOut.String())
	}
	return float64(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) * 1024 / 1e6, nil
}

// highWater is a process's peak of resident memory in MB.
func highWater(pid int) float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0 // ended
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kB, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kB * 1024 / 1e6
		}
	}
	return 0
}
