package apply

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/minke-os/minke/internal/signal"
	"github.com/minke-os/minke/supervisor/client"
	"github.com/minke-os/minke/supervisor/model"
	"github.com/minke-os/minke/supervisor/plan"
	"github.com/moby/moby/api/types/container"
)

// stop has the engine stop a container. One that the stop signal cannot reach is
// killed at once, unless its composition says how long a stop may take: the
// kernel drops a signal to process 1 of a PID namespace that has no handler for
// it, so there is nothing to wait for.
func (a *Applier) stop(ctx context.Context, s plan.Step) error {
	var opts client.ContainerStopOptions
	if a.hearsNothing(ctx, s.Container) {
		opts.Timeout = new(int)
	}
	_, err := a.Engine.ContainerStop(ctx, s.Container, opts)
	return wrap(gone(err), "stop service %s", s.Service)
}

// hearsNothing reports whether a container's stop signal is lost. Where that
// cannot be known, as of an engine elsewhere, it is not.
func (a *Applier) hearsNothing(ctx context.Context, id string) bool {
	res, err := a.Engine.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	c := res.Container
	if err != nil || c.State == nil || c.State.Pid <= 0 || c.Config == nil || c.HostConfig == nil {
		return false // the stop will say what is wrong
	}
	if c.HostConfig.Init != nil && *c.HostConfig.Init || graceGiven(c.Config) {
		return false
	}
	proc := fmt.Sprintf("/proc/%d/", c.State.Pid)
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		return false
	}
	// The number may be another process's by now, or another machine's. Only one
	// of the container is in a control group with the container's ID; it is read
	// last, for a process that has ended is in none.
	groups, err := os.ReadFile(proc + "cgroup")
	return err == nil && bytes.Contains(groups, []byte(id)) && deaf(status, c.Config.StopSignal)
}

// graceGiven reports whether a composition says how long a stop may take.
func graceGiven(cfg *container.Config) bool {
	_, ours := cfg.Labels[model.LabelPrint]
	_, given := cfg.Labels[model.LabelGrace]
	return !ours || given || cfg.StopTimeout == nil || *cfg.StopTimeout != model.DefaultGrace
}

// deaf reads /proc/<pid>/status. A process is deaf to a signal if it is number 1
// of a PID namespace below ours and neither catches, blocks nor ignores the
// signal. One that blocks it takes it by sigwait or signalfd; one that ignores it
// has said so, and may listen again later.
func deaf(status []byte, stopSignal string) bool {
	sig, err := signal.Parse(cmp.Or(stopSignal, "TERM"))
	if err != nil {
		return false
	}
	fields := map[string]string{}
	for line := range bytes.Lines(status) {
		name, value, _ := strings.Cut(string(line), ":")
		fields[name] = strings.TrimSpace(value)
	}
	if ids := strings.Fields(fields["NSpid"]); len(ids) < 2 || ids[len(ids)-1] != "1" {
		return false
	}
	for _, name := range []string{"SigBlk", "SigIgn", "SigCgt"} {
		set, err := strconv.ParseUint(fields[name], 16, 64)
		if err != nil || set>>(sig-1)&1 != 0 {
			return false
		}
	}
	return true
}
