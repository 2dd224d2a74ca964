package command

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime/internal/solo"
)

// update takes limits from a file ("-" is standard input) or from flags, which
// have runc's names.
func update(g global, args []string) error {
	fs := newFlags("update")
	var file, cpus, mems string
	for _, name := range []string{"resources", "r"} {
		fs.StringVar(&file, name, "", "")
	}
	r := specs.LinuxResources{Memory: &specs.LinuxMemory{}, CPU: &specs.LinuxCPU{}}
	number := func(name string, set func(int64)) {
		fs.Func(name, "", func(s string) error {
			n, err := strconv.ParseInt(s, 10, 64)
			if err == nil {
				set(n)
			}
			return err
		})
	}
	number("memory", func(n int64) { r.Memory.Limit = &n })
	number("memory-reservation", func(n int64) { r.Memory.Reservation = &n })
	number("memory-swap", func(n int64) { r.Memory.Swap = &n })
	number("cpu-quota", func(n int64) { r.CPU.Quota = &n })
	number("cpu-period", func(n int64) { r.CPU.Period = new(uint64(n)) })
	number("cpu-burst", func(n int64) { r.CPU.Burst = new(uint64(n)) })
	number("cpu-share", func(n int64) { r.CPU.Shares = new(uint64(n)) })
	number("cpu-idle", func(n int64) { r.CPU.Idle = &n })
	number("blkio-weight", func(n int64) { r.BlockIO = &specs.LinuxBlockIO{Weight: new(uint16(n))} })
	number("pids-limit", func(n int64) { r.Pids = &specs.LinuxPids{Limit: &n} })
	fs.StringVar(&cpus, "cpuset-cpus", "", "")
	fs.StringVar(&mems, "cpuset-mems", "", "")
	return with(g, fs, args, func(c *solo.Container, _ []string) error {
		r.CPU.Cpus, r.CPU.Mems = cpus, mems
		if file != "" {
			data, err := readAll(file)
			if err != nil {
				return err
			}
			r = specs.LinuxResources{}
			if err := json.Unmarshal(data, &r); err != nil {
				return errdef.Invalid.Errorf("%s: %w", file, err)
			}
		}
		warnings, err := c.Update(&r)
		for _, w := range warnings {
			g.warn(w)
		}
		return err
	})
}

func readAll(file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(os.Stdin)
	}
	return os.ReadFile(file)
}

func ps(g global, args []string) error {
	fs := newFlags("ps")
	format := fs.String("format", "table", "")
	fs.StringVar(format, "f", "table", "")
	return with(g, fs, args, func(c *solo.Container, rest []string) error {
		pids, err := c.Pids()
		if err != nil {
			return err
		}
		if *format == "json" {
			return printJSON(append([]int{}, pids...))
		}
		if len(rest) == 0 {
			rest = []string{"-ef"}
		}
		return printTable(pids, rest)
	})
}

// printTable prints those lines of the command ps that are about pids.
func printTable(pids []int, args []string) error {
	out, err := osexec.Command("ps", args...).Output()
	if err != nil {
		return fmt.Errorf("ps %s: %w", strings.Join(args, " "), err)
	}
	column := -1
	for line := range bytes.Lines(out) {
		fields := strings.Fields(string(line))
		if column < 0 {
			if column = slices.Index(fields, "PID"); column < 0 {
				return fmt.Errorf("ps %s shows no process IDs", strings.Join(args, " "))
			}
			os.Stdout.Write(line)
			continue
		}
		if pid, err := strconv.Atoi(fields[min(column, len(fields)-1)]); err == nil && slices.Contains(pids, pid) {
			os.Stdout.Write(line)
		}
	}
	return nil
}

// events shows once what the container has used. It does not follow it:
// callers that want that read the cgroup themselves.
func events(g global, args []string) error {
	fs := newFlags("events")
	once := fs.Bool("stats", false, "")
	fs.String("interval", "", "")
	return with(g, fs, args, func(c *solo.Container, _ []string) error {
		if !*once {
			return errdef.Unsupported.Errorf("events: this runtime shows the figures of a moment (--stats) and does not follow a container")
		}
		u := c.Usage()
		type object map[string]any
		return json.NewEncoder(os.Stdout).Encode(object{"type": "stats", "id": c.ID, "data": object{
			"cpu":    object{"usage": object{"total": u.CPU}},
			"memory": object{"usage": object{"usage": u.Memory}},
			"pids":   object{"current": u.Pids},
		}})
	})
}
