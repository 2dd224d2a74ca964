package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/minke-os/minke/bench/pairs"
)

// A deltaSample is what one way of making an update small costs.
type deltaSample struct {
	Size                float64 // MB
	Make, Apply         float64 // seconds of processor
	MakeTime, ApplyTime float64 // seconds
	MakeMemory          float64 // MB, the most that the process was resident with
	ApplyMemory         float64 // MB, the same, and of a daemon only what it took more than before
}

// bsdiffLimit is the largest layer that bsdiff is given, in bytes: it needs 17
// times as much memory.
const bsdiffLimit = 64 << 20

// deltaTools are commands over a layer's tar; OLD, NEW, DELTA and OUT stand for
// files. Sizes of their windows are those of the largest layers.
var deltaTools = []struct {
	name        string
	make, apply []string
	limit       int64
}{
	{"gzip (whole layer)", []string{"sh", "-c", "gzip -9 <NEW >DELTA"}, []string{"sh", "-c", "gzip -d <DELTA >OUT"}, 0},
	{"rdiff, gzip", []string{"sh", "-c", "rdiff -f signature OLD OUT && rdiff delta OUT NEW - | gzip -9 >DELTA"}, []string{"sh", "-c", "gzip -d <DELTA | rdiff -f patch OLD - OUT"}, 0},
	{"zstd --patch-from", []string{"zstd", "-q", "-f", "-19", "--long=31", "--patch-from=OLD", "NEW", "-o", "DELTA"}, []string{"zstd", "-q", "-f", "-d", "--long=31", "--patch-from=OLD", "DELTA", "-o", "OUT"}, 0},
	{"xdelta3", []string{"xdelta3", "-e", "-f", "-9", "-B", "536870912", "-s", "OLD", "NEW", "DELTA"}, []string{"xdelta3", "-d", "-f", "-B", "536870912", "-s", "OLD", "DELTA", "OUT"}, 0},
	{"bsdiff", []string{"bsdiff", "OLD", "NEW", "DELTA"}, []string{"bspatch", "OLD", "OUT", "DELTA"}, bsdiffLimit},
}

// runDeltas compares minke's deltas with those that general tools make of the
// same layers.
func (r *runner) runDeltas(ctx context.Context, out string) (err error) {
	made, err := r.preparePairs(ctx, "rdiff", "zstd", "xdelta3", "bsdiff", "mmdebstrap", "npm")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.remove()) }()
	if err := r.prepare(ctx); err != nil {
		return err
	}
	if err := r.start(ctx, "minke"); err != nil {
		return err
	}
	e := r.engines[0]
	defer func() { err = errors.Join(err, e.close()) }()
	all := map[string]map[string]deltaSample{}
	for _, p := range made {
		all[p.Name] = map[string]deltaSample{}
		ours, plain, err := e.delta(ctx, r.dir, p)
		if err != nil {
			return fmt.Errorf("%s: minke: %w", p.Name, err)
		}
		all[p.Name]["minke"], all[p.Name][plainLoad] = ours, plain
		for _, tool := range deltaTools {
			s, ok, err := toolDelta(ctx, r, p, tool.make, tool.apply, tool.limit)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", p.Name, tool.name, err)
			}
			if ok {
				all[p.Name][tool.name] = s
			}
		}
		fmt.Fprintf(os.Stderr, "bench: %s is done\n", p.Name)
	}
	if err := keep(out, time.Now(), "-deltas", all); err != nil {
		return err
	}
	return printDeltas(os.Stdout, made, all)
}

// plainLoad is minke, too, with the whole image in an archive that is not
// compressed.
const plainLoad = "minke, whole image"

// delta makes one with minke, and loads it where only the old image is, by a daemon
// that has just started; then the whole image likewise.
func (e *engine) delta(ctx context.Context, dir string, p pairs.Pair) (s, plain deltaSample, err error) {
	for _, archive := range []string{p.Old, p.New} {
		if _, err := e.command(ctx, "load", "-i", archive); err != nil {
			return s, plain, err
		}
	}
	file := filepath.Join(dir, "minke.delta")
	timed := func(cpu, wall, memory *float64, cli []string, args ...string) error {
		// From here on the high-water mark counts anew, see proc_pid_clear_refs(5).
		pid := e.process.Process.Pid
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0o200); err != nil {
			return err
		}
		before, err := e.place.used("")
		if err != nil {
			return err
		}
		began := time.Now()
		idle := highWater(pid)
		if _, err := e.execute(ctx, cli, args); err != nil {
			return err
		}
		*wall, *memory = time.Since(began).Seconds(), highWater(pid)
		if memory != &s.MakeMemory {
			*memory -= idle
		}
		after, err := e.place.used("")
		*cpu = (after - before).Seconds()
		return err
	}
	if err := timed(&s.Make, &s.MakeTime, &s.MakeMemory, e.own, "delta", "create", "-o", file, p.OldTag, p.NewTag); err != nil {
		return s, plain, err
	}
	fi, err := os.Stat(file)
	if err != nil {
		return s, plain, err
	}
	s.Size = mb(fi.Size())
	if fi, err = os.Stat(p.New); err != nil {
		return s, plain, err
	}
	plain.Size = mb(fi.Size())
	apply := func(to *deltaSample, file string) error {
		if err := e.afresh(ctx); err != nil {
			return err
		}
		if _, err := e.command(ctx, "load", "-i", p.Old); err != nil {
			return err
		}
		if err := e.restart(ctx); err != nil {
			return err
		}
		return timed(&to.Apply, &to.ApplyTime, &to.ApplyMemory, e.cli, "load", "-i", file)
	}
	if err := apply(&s, file); err != nil {
		return s, plain, err
	}
	if err := apply(&plain, p.New); err != nil {
		return s, plain, err
	}
	return s, plain, e.afresh(ctx)
}

// toolDelta makes a delta of the layer that changed, applies it, and checks the
// result. ok is false for a layer that is too large for the tool.
func toolDelta(ctx context.Context, r *runner, p pairs.Pair, make, apply []string, limit int64) (s deltaSample, ok bool, err error) {
	layer := func(version int) string {
		return filepath.Join(r.pairs, fmt.Sprintf("layer-%s-%d.tar", p.Name, version))
	}
	names := map[string]string{"OLD": layer(1), "NEW": layer(2), "DELTA": filepath.Join(r.dir, "delta"), "OUT": filepath.Join(r.dir, "out")}
	fi, err := os.Stat(names["NEW"])
	if err != nil || limit > 0 && fi.Size() > limit {
		return s, false, err
	}
	run := func(args []string, cpu, wall, memory *float64) error {
		filled := []string{}
		for _, a := range args {
			for k, v := range names {
				a = string(bytes.ReplaceAll([]byte(a), []byte(k), []byte(v)))
			}
			filled = append(filled, a)
		}
		cmd := exec.CommandContext(ctx, filled[0], filled[1:]...)
		began := time.Now()
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, text)
		}
		*wall = time.Since(began).Seconds()
		*cpu = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
		*memory = float64(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) / 1000 // kB
		return nil
	}
	if err := run(make, &s.Make, &s.MakeTime, &s.MakeMemory); err != nil {
		return s, false, err
	}
	if err := run(apply, &s.Apply, &s.ApplyTime, &s.ApplyMemory); err != nil {
		return s, false, err
	}
	if err := exec.CommandContext(ctx, "cmp", names["NEW"], names["OUT"]).Run(); err != nil {
		return s, false, fmt.Errorf("what comes out is not what went in: %w", err)
	}
	if fi, err = os.Stat(names["DELTA"]); err != nil {
		return s, false, err
	}
	s.Size = mb(fi.Size())
	return s, true, nil
}

func printDeltas(w io.Writer, made []pairs.Pair, all map[string]map[string]deltaSample) error {
	var b bytes.Buffer
	names := []string{"minke", plainLoad}
	head := []string{"pair", "figure", "of " + plainLoad + "'s"}
	for _, t := range deltaTools {
		head, names = append(head, "of "+t.name+"'s"), append(names, t.name)
	}
	ratios := result{Engines: names}
	for _, f := range []struct {
		name string
		of   func(deltaSample) float64
	}{
		{"size, kB", func(s deltaSample) float64 { return 1000 * s.Size }},
		{"make: processor, s", func(s deltaSample) float64 { return s.Make }},
		{"make: time, s", func(s deltaSample) float64 { return s.MakeTime }},
		{"make: memory, MB", func(s deltaSample) float64 { return s.MakeMemory }},
		{"apply: processor, s", func(s deltaSample) float64 { return s.Apply }},
		{"apply: time, s", func(s deltaSample) float64 { return s.ApplyTime }},
		{"apply: memory, MB", func(s deltaSample) float64 { return s.ApplyMemory }},
	} {
		table(&b, append(head[:len(head):len(head)], names...))
		for _, p := range made {
			ratios.row(&b, p.Name, f.name, func(name string) (float64, bool) {
				s, ok := all[p.Name][name]
				return f.of(s), ok
			})
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}
