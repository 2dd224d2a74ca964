package engine

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/engine/internal/spec"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime"
)

// An execution is a process beside a container's own. It lives in memory: it
// does not outlive its container, nor the engine's record of it a restart.
type execution struct {
	id        string
	container *Container
	req       container.ExecCreateRequest
	keys      []byte

	mu      sync.Mutex
	started bool
	running bool
	code    *int
	pid     int
	ended   time.Time
}

// execKept is how long an execution that ended can be inspected, as in Docker.
// Without a limit an application that is asked each second would fill memory.
const execKept = 5 * time.Minute

// ExecCreate prepares a process; ExecStart runs it.
func (e *Engine) ExecCreate(_ context.Context, name string, req container.ExecCreateRequest) (string, error) {
	if len(req.Cmd) == 0 {
		return "", errdef.Invalid.Errorf("No exec command specified")
	}
	c, r, err := e.findRunning(name)
	if err != nil {
		return "", err
	}
	if r.Paused {
		return "", errdef.Conflict.Errorf("container %s is paused, unpause the container before exec", name)
	}
	keys, err := parseDetachKeys(req.DetachKeys)
	if err != nil {
		return "", err
	}
	e.forgetOldExecs(c)
	x := &execution{id: newID(), container: c, req: req, keys: keys}
	e.mu.Lock()
	e.execs[x.id] = x
	e.mu.Unlock()
	c.mu.Lock()
	c.execIDs = append(c.execIDs, x.id)
	c.mu.Unlock()
	e.publishExec(events.ActionExecCreate, x, nil)
	return x.id, nil
}

func (e *Engine) findExec(id string) (*execution, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	x, ok := e.execs[id]
	if !ok {
		return nil, errdef.NotFound.Errorf("No such exec instance: %s", id)
	}
	return x, nil
}

// ExecStart runs a prepared process. The attachment carries its streams unless
// detach is set, when it is nil.
func (e *Engine) ExecStart(ctx context.Context, id string, req container.ExecStartRequest) (*Attachment, error) {
	x, err := e.findExec(id)
	if err != nil {
		return nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.started {
		return nil, errdef.Conflict.Errorf("exec instance %s has already run", id)
	}
	r := x.container.snapshot()
	if !r.runs() || r.Paused {
		return nil, errdef.Conflict.Errorf("container %s is not running", r.ID)
	}
	p, err := e.execProcess(&r, x.req)
	if err != nil {
		return nil, e.execFailed(x, err)
	}
	if size := req.ConsoleSize; size != nil && x.req.Tty {
		p.ConsoleSize = &specs.Box{Height: size[0], Width: size[1]}
	} else if size := x.req.ConsoleSize; size != nil && x.req.Tty {
		p.ConsoleSize = &specs.Box{Height: size[0], Width: size[1]}
	}
	attached := !req.Detach
	pid, streams, err := e.rt.Exec(ctx, r.ID, runtime.Exec{
		ID: x.id, Process: p, Stdin: attached && x.req.AttachStdin, Stdout: attached && x.req.AttachStdout, Stderr: attached && x.req.AttachStderr,
		Foreign: isForeign(&r),
	})
	if err != nil {
		return nil, e.execFailed(x, err)
	}
	x.started, x.running, x.pid = true, true, pid
	e.publishExec(events.ActionExecStart, x, nil)
	ended := make(chan struct{})
	e.wg.Go(func() {
		defer close(ended)
		e.watchExec(x)
	})
	if !attached {
		closeStreams(streams)
		return nil, nil
	}
	a := &Attachment{TTY: x.req.Tty, e: e, exec: x, keys: x.keys, streams: make(chan *runtime.Streams, 1)}
	// A client reads the exit code right after the streams end.
	a.onEnd = func() {
		select {
		case <-ended:
		case <-ctx.Done():
		}
	}
	a.streams <- streams
	return a, nil
}

// execFailed words the failure as docker exec expects it, which takes the exit
// code 127 or 126 from the inspection.
func (e *Engine) execFailed(x *execution, err error) error {
	code := 126
	se, isStart := errors.AsType[*runtime.StartError](err)
	if isStart {
		code = se.Code
	}
	x.started, x.code, x.ended = true, &code, time.Now()
	e.publishExec(events.ActionExecDie, x, map[string]string{"exitCode": strconv.Itoa(code)})
	if isStart {
		return errdef.Invalid.Errorf("OCI runtime exec failed: exec failed: unable to start container process: %w", err)
	}
	return err
}

func (e *Engine) watchExec(x *execution) {
	exit, err := e.rt.WaitExec(e.ctx, x.container.ID, x.id)
	if e.closing() {
		return
	}
	if err != nil { // its container is gone
		exit.Code = 137
	}
	x.mu.Lock()
	x.running, x.code, x.ended = false, &exit.Code, time.Now()
	x.mu.Unlock()
	e.publishExec(events.ActionExecDie, x, map[string]string{"exitCode": strconv.Itoa(exit.Code)})
}

// execProcess is the process in OCI's words.
func (e *Engine) execProcess(r *record, req container.ExecCreateRequest) (*specs.Process, error) {
	name := req.User
	if name == "" {
		name = r.Config.User
	}
	who, err := e.lookUpUserIn(r, name)
	if err != nil {
		return nil, err
	}
	host := *r.Host
	if req.Privileged {
		host.Privileged = true
	}
	caps, err := spec.Capabilities(&host)
	if err != nil {
		return nil, err
	}
	security, err := spec.ParseSecurity(r.Host)
	if err != nil {
		return nil, err
	}
	cwd := req.WorkingDir
	if cwd == "" {
		cwd = r.Config.WorkingDir
	}
	if cwd == "" {
		cwd = "/"
	}
	cfg := *e.withLinks(r)
	cfg.Tty = req.Tty
	return &specs.Process{
		Terminal: req.Tty, Args: req.Cmd, Cwd: cwd,
		User:            specs.User{UID: who.UID, GID: who.GID, AdditionalGids: who.Groups, Umask: r.Host.Umask},
		Env:             spec.MergeEnv(spec.Env(&cfg, e.hostname(r), who.Home), req.Env),
		Capabilities:    spec.Set(caps),
		NoNewPrivileges: security.NoNewPrivileges,
		ApparmorProfile: security.AppArmor,
		Rlimits:         spec.Rlimits(r.Host),
		OOMScoreAdj:     &r.Host.OomScoreAdj,
	}, nil
}

// ExecResize sets the size of its terminal.
func (e *Engine) ExecResize(ctx context.Context, id string, height, width uint16) error {
	x, err := e.findExec(id)
	if err != nil {
		return err
	}
	return e.rt.Resize(ctx, x.container.ID, x.id, runtime.WindowSize{Width: width, Height: height})
}

// ExecInspect tells how it goes.
func (e *Engine) ExecInspect(id string) (container.ExecInspectResponse, error) {
	x, err := e.findExec(id)
	if err != nil {
		return container.ExecInspectResponse{}, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return container.ExecInspectResponse{
		ID: x.id, Running: x.running, ExitCode: x.code, Pid: x.pid, ContainerID: x.container.ID,
		OpenStdin: x.req.AttachStdin, OpenStdout: x.req.AttachStdout, OpenStderr: x.req.AttachStderr,
		CanRemove: x.started && !x.running, DetachKeys: x.keys,
		ProcessConfig: &container.ExecProcessConfig{
			Tty: x.req.Tty, Entrypoint: x.req.Cmd[0], Arguments: x.req.Cmd[1:], Privileged: &x.req.Privileged, User: x.req.User,
		},
	}, nil
}

// forgetOldExecs drops those that ended a while ago.
func (e *Engine) forgetOldExecs(c *Container) {
	e.dropExecs(c, func(x *execution) bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		return !x.ended.IsZero() && time.Since(x.ended) > execKept
	})
}

// dropExecs forgets those executions of a container that old chooses.
func (e *Engine) dropExecs(c *Container, old func(*execution) bool) {
	c.mu.Lock()
	ids := c.execIDs
	c.mu.Unlock()
	drop := map[string]bool{}
	for _, id := range ids { // without c's lock: an execution's is taken before it
		if x, err := e.findExec(id); err != nil || old(x) {
			drop[id] = true
		}
	}
	if len(drop) == 0 {
		return
	}
	c.mu.Lock()
	c.execIDs = slices.DeleteFunc(slices.Clone(c.execIDs), func(id string) bool { return drop[id] })
	c.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	for id := range drop {
		delete(e.execs, id)
	}
}

// liveExecs are the IDs of those that have not ended, as docker inspect shows.
func (e *Engine) liveExecs(ids []string) (out []string) {
	for _, id := range ids {
		x, err := e.findExec(id)
		if err != nil {
			continue
		}
		x.mu.Lock()
		if x.ended.IsZero() {
			out = append(out, id)
		}
		x.mu.Unlock()
	}
	return out
}

// forgetExecs drops what ran in a container that has stopped.
func (e *Engine) forgetExecs(c *Container) {
	e.dropExecs(c, func(*execution) bool { return true })
}

func (e *Engine) publishExec(a events.Action, x *execution, more map[string]string) {
	r := x.container.snapshot()
	attributes := merged(map[string]string{"execID": x.id}, more)
	if a == events.ActionExecCreate || a == events.ActionExecStart {
		a += events.Action(": " + strings.Join(x.req.Cmd, " "))
	}
	e.publish(a, &r, attributes)
}
