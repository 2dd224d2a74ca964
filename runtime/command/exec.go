package command

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime"
)

// words is a flag that may be given several times.
type words []string

func (w *words) String() string     { return strings.Join(*w, " ") }
func (w *words) Set(s string) error { *w = append(*w, s); return nil }

// execution are the options of exec.
type execution struct {
	process, cwd, pidFile string
	env                   words
	tty, detach           bool
}

func exec(ctx context.Context, g global, args []string) error {
	var e execution
	fs := newFlags("exec")
	fs.StringVar(&e.process, "process", "", "")
	fs.StringVar(&e.process, "p", "", "")
	fs.StringVar(&e.cwd, "cwd", "", "")
	fs.StringVar(&e.pidFile, "pid-file", "", "")
	fs.Var(&e.env, "env", "")
	fs.Var(&e.env, "e", "")
	fs.BoolVar(&e.tty, "tty", false, "")
	fs.BoolVar(&e.tty, "t", false, "")
	fs.BoolVar(&e.detach, "detach", false, "")
	fs.BoolVar(&e.detach, "d", false, "")
	return with(ctx, g, fs, args, func(m *runtime.Monitor, id string, rest []string) error {
		p, err := e.processOf(ctx, m, id, rest)
		if err != nil {
			return err
		}
		return e.run(ctx, m, id, p)
	})
}

// processOf is the given process, or the container's own with another command.
func (e execution) processOf(ctx context.Context, m *runtime.Monitor, id string, args []string) (*specs.Process, error) {
	if e.process != "" {
		data, err := os.ReadFile(e.process)
		if err != nil {
			return nil, err
		}
		var p specs.Process
		if err := json.Unmarshal(data, &p); err != nil {
			return nil, errdef.Invalid.Errorf("%s: %w", e.process, err)
		}
		return &p, nil
	}
	if len(args) == 0 {
		return nil, errdef.Invalid.Errorf("exec: which command?")
	}
	s, err := find(ctx, m, id)
	if err != nil {
		return nil, err
	}
	spec, err := readSpec(s.Bundle)
	if err != nil {
		return nil, err
	}
	p := spec.Process
	p.Args, p.Terminal, p.Env = args, e.tty, append(p.Env, e.env...)
	if e.cwd != "" {
		p.Cwd = e.cwd
	}
	return p, nil
}

func (e execution) run(ctx context.Context, m *runtime.Monitor, id string, p *specs.Process) error {
	execID := fmt.Sprintf("cli-%d", os.Getpid())
	attached := !e.detach
	pid, s, err := m.Exec(ctx, id, runtime.Exec{ID: execID, Process: p, Stdin: attached, Stdout: attached, Stderr: attached})
	if err != nil {
		return err
	}
	defer s.Close()
	if err := writePid(e.pidFile, pid); err != nil || e.detach {
		return err
	}
	go func() {
		io.Copy(s.Stdin, os.Stdin)
		s.Stdin.Close()
	}()
	var copies sync.WaitGroup
	copies.Go(func() { io.Copy(os.Stdout, s.Stdout) })
	if s.Stderr != nil {
		copies.Go(func() { io.Copy(os.Stderr, s.Stderr) })
	}
	copies.Wait()
	x, err := m.WaitExec(ctx, id, execID)
	return exitOf(x.Code, err)
}
