package engine

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/minke-os/minke/internal/errdef"
)

// ContainerTop lists a container's processes with the host's ps, as Docker
// does: its arguments are the client's.
func (e *Engine) ContainerTop(name, psArgs string) (container.TopResponse, error) {
	var out container.TopResponse
	_, r, err := e.findRunning(name)
	if err != nil {
		return out, err
	}
	if psArgs == "" {
		psArgs = "-ef"
	}
	pids, err := pidsOf(r.Pid)
	if err != nil {
		return out, err
	}
	list, err := exec.Command("ps", strings.Fields(psArgs)...).Output()
	if err != nil {
		return out, errdef.Unavailable.Errorf("run the host's ps %s: %w; install procps", psArgs, err)
	}
	lines := bufio.NewScanner(bytes.NewReader(list))
	if !lines.Scan() {
		return out, errdef.Unavailable.Errorf("the host's ps printed nothing")
	}
	out.Titles = strings.Fields(lines.Text())
	column := slices.Index(out.Titles, "PID")
	if column < 0 {
		return out, errdef.Invalid.Errorf("Couldn't find PID field in ps output")
	}
	for lines.Scan() {
		// The last column may contain spaces.
		fields := strings.Fields(lines.Text())
		if len(fields) < len(out.Titles) {
			continue
		}
		if pid, err := strconv.Atoi(fields[column]); err != nil || !pids[pid] {
			continue
		}
		n := len(out.Titles) - 1
		out.Processes = append(out.Processes, append(slices.Clone(fields[:n]), strings.Join(fields[n:], " ")))
	}
	e.publish(events.ActionTop, &r, nil)
	return out, nil
}

// pidsOf are the processes in the cgroup of a container's first one.
func pidsOf(pid int) (map[int]bool, error) {
	own, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return nil, err
	}
	for _, line := range strings.Split(string(own), "\n") {
		parts := strings.SplitN(line, ":", 3)
		if len(parts) != 3 {
			continue
		}
		var dir string
		switch {
		case parts[1] == "" && cgroupV2():
			dir = "/sys/fs/cgroup" + parts[2]
		case parts[1] == "pids":
			dir = "/sys/fs/cgroup/pids" + parts[2]
		default:
			continue
		}
		data, err := os.ReadFile(dir + "/cgroup.procs")
		if err != nil {
			return nil, err
		}
		out := map[int]bool{}
		for _, word := range strings.Fields(string(data)) {
			if n, err := strconv.Atoi(word); err == nil {
				out[n] = true
			}
		}
		return out, nil
	}
	return map[int]bool{pid: true}, nil
}
