package command

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime/internal/solo"
)

// words is a flag that may be given several times.
type words []string

func (w *words) String() string     { return strings.Join(*w, " ") }
func (w *words) Set(s string) error { *w = append(*w, s); return nil }

// execution are the options of exec.
type execution struct {
	process, cwd, user, pidFile, consoleSocket, apparmor string

	env, caps, groups       words
	tty, detach, noNewPrivs bool
	solo.Options
}

func exec(g global, args []string) error {
	var e execution
	fs := newFlags("exec")
	for _, name := range []string{"process", "p"} {
		fs.StringVar(&e.process, name, "", "")
	}
	fs.StringVar(&e.cwd, "cwd", "", "")
	for _, name := range []string{"user", "u"} {
		fs.StringVar(&e.user, name, "", "")
	}
	fs.StringVar(&e.pidFile, "pid-file", "", "")
	fs.StringVar(&e.consoleSocket, "console-socket", "", "")
	fs.StringVar(&e.apparmor, "apparmor", "", "")
	for _, name := range []string{"env", "e"} {
		fs.Var(&e.env, name, "")
	}
	for _, name := range []string{"cap", "c"} {
		fs.Var(&e.caps, name, "")
	}
	for _, name := range []string{"additional-gids", "g"} {
		fs.Var(&e.groups, name, "")
	}
	for _, name := range []string{"tty", "t"} {
		fs.BoolVar(&e.tty, name, false, "")
	}
	for _, name := range []string{"detach", "d"} {
		fs.BoolVar(&e.detach, name, false, "")
	}
	fs.BoolVar(&e.noNewPrivs, "no-new-privs", false, "")
	fs.IntVar(&e.PreserveFDs, "preserve-fds", 0, "")
	return with(g, fs, args, func(c *solo.Container, rest []string) error {
		p, err := e.processOf(c, rest)
		if err != nil {
			return err
		}
		return e.run(c, p)
	})
}

// processOf is the given process, or the container's own with another command.
func (e execution) processOf(c *solo.Container, args []string) (*specs.Process, error) {
	if e.process != "" {
		var p specs.Process
		return &p, readJSON(e.process, &p)
	}
	if len(args) == 0 {
		return nil, errdef.Invalid.Errorf("exec: which command?")
	}
	spec, err := readSpec(c.Bundle)
	if err != nil {
		return nil, err
	}
	p := spec.Process
	p.Args, p.Terminal, p.Env = args, e.tty, append(p.Env, e.env...)
	p.NoNewPrivileges = p.NoNewPrivileges || e.noNewPrivs
	if e.cwd != "" {
		p.Cwd = e.cwd
	}
	if e.apparmor != "" {
		p.ApparmorProfile = e.apparmor
	}
	if len(e.caps) > 0 && p.Capabilities == nil {
		p.Capabilities = &specs.LinuxCapabilities{}
	}
	for _, name := range e.caps {
		s := p.Capabilities
		s.Bounding, s.Effective, s.Permitted = append(s.Bounding, name), append(s.Effective, name), append(s.Permitted, name)
	}
	if e.user != "" {
		if _, err := fmt.Sscanf(strings.Replace(e.user, ":", " ", 1)+" 0", "%d %d", &p.User.UID, &p.User.GID); err != nil {
			return nil, errdef.Invalid.Errorf("--user %s: want UID[:GID]", e.user)
		}
	}
	for _, group := range e.groups {
		gid, err := strconv.ParseUint(group, 10, 32)
		if err != nil {
			return nil, errdef.Invalid.Errorf("--additional-gids %s: want a number", group)
		}
		p.User.AdditionalGids = append(p.User.AdditionalGids, uint32(gid))
	}
	return p, nil
}

func readJSON(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return errdef.Invalid.Errorf("%s: %w", path, err)
	}
	return nil
}

func (e execution) run(c *solo.Container, p *specs.Process) error {
	pid, tty, err := c.Exec(p, e.Options)
	if err != nil {
		return err
	}
	if tty != nil {
		defer tty.Close()
	}
	if err := sendTerminal(tty, e.consoleSocket); err != nil {
		return err
	}
	if err := writePid(e.pidFile, pid); err != nil || e.detach {
		return err
	}
	return exitOf(foreground(pid, tty, e.consoleSocket != ""))
}
