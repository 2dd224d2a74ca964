package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The cases, in the order of the table.
const (
	caseRun     = "`docker run --rm` on a bridge"
	caseOwnRun  = "`minke run --rm` on a bridge"
	caseExec    = "`docker exec`"
	caseOwnExec = "`minke exec`"
	caseStart   = "API: create and start"
	caseKill    = "API: kill and wait"
	caseRemove  = "API: remove"
	caseStop    = "API: stop"
	caseAPIExec = "API: exec, to the end of its output"
	caseList    = "API: list 50 containers"
)

var cases = []string{caseRun, caseOwnRun, caseExec, caseOwnExec, caseStart, caseKill, caseRemove, caseStop, caseAPIExec, caseList}

const (
	standing = "standing" // a container that runs all the time
	listed   = 50         // containers while the rounds last, with it
	idlers   = 10         // for the memory
)

// memory looks at a daemon that has run one container, then at ten that idle.
func (e *engine) memory(ctx context.Context, res *result) error {
	if _, err := e.command(ctx, e.runEcho()...); err != nil {
		return err
	}
	look := func(what string) error {
		time.Sleep(time.Second) // for whoever frees memory
		pids, err := e.place.pids()
		kB, names := pss(pids)
		res.Memory[e.name] = append(res.Memory[e.name], memory{what, kB, strings.Join(names, " ")})
		return err
	}
	if err := look("idle"); err != nil {
		return err
	}
	for i := range idlers {
		if _, err := e.command(ctx, e.runIdle(fmt.Sprint("idle", i))...); err != nil {
			return err
		}
	}
	if err := look("ten containers"); err != nil {
		return err
	}
	return e.removeAll(ctx)
}

// checked is how long health checks are looked at.
const checked = 20 * time.Second

// health looks at what checking a container's health every second costs, the
// check with it, and what the same container costs without. podman leaves checks
// to systemd.
func (e *engine) health(ctx context.Context, res *result) error {
	if e.api == nil {
		return nil
	}
	spent := func(flags ...string) (float64, error) {
		args := append(e.runWith(append([]string{"-d", "--name", "checked"}, flags...)...), image, "sleep", "100000")
		if _, err := e.command(ctx, args...); err != nil {
			return 0, err
		}
		if err := e.place.settle(); err != nil {
			return 0, err
		}
		before, err := e.place.used("")
		if err != nil {
			return 0, err
		}
		time.Sleep(checked)
		after, err := e.place.used("")
		if err != nil {
			return 0, err
		}
		return 100 * float64(after-before) / float64(checked), e.removeAll(ctx)
	}
	without, err := spent()
	if err != nil {
		return err
	}
	with, err := spent("--health-cmd", "/bin/echo ok", "--health-interval", "1s")
	res.Health[e.name] = with - without
	return err
}

// populate makes the containers that are there during the rounds.
func (e *engine) populate(ctx context.Context) error {
	if _, err := e.command(ctx, e.runIdle(standing)...); err != nil {
		return err
	}
	if e.api == nil {
		return nil
	}
	for i := range listed - 1 {
		if err := e.create(ctx, fmt.Sprint("listed", i), "sleep", "100000"); err != nil {
			return err
		}
	}
	return nil
}

// runEcho is the command line of a container that ends at once.
func (e *engine) runEcho() []string {
	return append(e.runWith("--rm"), image, "/bin/echo", "hi")
}

// runIdle is that of one which stays.
func (e *engine) runIdle(name string) []string {
	return append(e.runWith("-d", "--name", name), image, "sleep", "100000")
}

func (e *engine) runWith(flags ...string) []string {
	return slices.Concat([]string{"run", "--cgroup-parent", e.parent()}, e.runFlags, flags)
}

// turn does a batch of everything once.
func (e *engine) turn(ctx context.Context, n int, res *result, count bool) error {
	do := func(name string, n int, op func(i int) error) error {
		s, err := e.measure(n, op)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if count {
			res.add(name, e.name, s)
		}
		return nil
	}
	typed := func(cli []string, want string, args ...string) func(int) error {
		return func(int) error {
			out, err := e.execute(ctx, cli, args)
			if err == nil && out != want {
				err = fmt.Errorf("printed %q, want %q", out, want)
			}
			return err
		}
	}
	if err := do(caseRun, n, typed(e.cli, "hi\n", e.runEcho()...)); err != nil {
		return err
	}
	if err := do(caseExec, n, typed(e.cli, "hi\n", "exec", standing, "/bin/echo", "hi")); err != nil {
		return err
	}
	if e.own != nil {
		if err := do(caseOwnRun, n, typed(e.own, "hi\n", e.runEcho()...)); err != nil {
			return err
		}
		if err := do(caseOwnExec, n, typed(e.own, "hi\n", "exec", standing, "/bin/echo", "hi")); err != nil {
			return err
		}
	}
	if e.api == nil {
		return nil
	}
	return e.apiTurn(ctx, n, do)
}

func (e *engine) apiTurn(ctx context.Context, n int, do func(string, int, func(int) error) error) error {
	name := func(i int) string { return fmt.Sprint("c", i) }
	call := func(method, format string) func(int) error {
		return func(i int) error { return e.api.do(ctx, method, fmt.Sprintf(format, name(i)), nil, nil) }
	}
	steps := []struct {
		name string
		n    int
		op   func(int) error
	}{
		{caseList, 5 * n, func(int) error { return e.api.do(ctx, "GET", "/containers/json?all=1", nil, &[]struct{}{}) }},
		{caseAPIExec, n, func(int) error { return e.exec(ctx, standing, "/bin/echo", "hi") }},
		{caseStart, n, func(i int) error { return e.run(ctx, name(i), "sleep", "100000") }},
		{caseKill, n, func(i int) error {
			if err := call("POST", "/containers/%s/kill")(i); err != nil {
				return err
			}
			return call("POST", "/containers/%s/wait")(i)
		}},
		{caseRemove, n, call("DELETE", "/containers/%s")},
	}
	for _, s := range steps {
		if err := do(s.name, s.n, s.op); err != nil {
			return err
		}
	}
	// One that ends when it is asked to, as well-behaved programs do.
	for i := range n {
		if err := e.run(ctx, name(i), "sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"); err != nil {
			return err
		}
	}
	if err := do(caseStop, n, call("POST", "/containers/%s/stop")); err != nil {
		return err
	}
	for i := range n {
		if err := call("DELETE", "/containers/%s?force=1")(i); err != nil {
			return err
		}
	}
	return nil
}

// run is docker run -d without the CLI.
func (e *engine) run(ctx context.Context, name string, cmd ...string) error {
	if err := e.create(ctx, name, cmd...); err != nil {
		return err
	}
	return e.api.do(ctx, "POST", "/containers/"+name+"/start", nil, nil)
}

// exec is docker exec without the CLI.
func (e *engine) exec(ctx context.Context, name string, cmd ...string) error {
	var made struct{ ID string }
	want := map[string]any{"Cmd": cmd, "AttachStdout": true, "AttachStderr": true}
	if err := e.api.do(ctx, "POST", "/containers/"+name+"/exec", want, &made); err != nil {
		return err
	}
	return e.api.do(ctx, "POST", "/exec/"+made.ID+"/start", map[string]any{}, nil)
}

func (e *engine) create(ctx context.Context, name string, cmd ...string) error {
	return e.api.do(ctx, "POST", "/containers/create?name="+name, map[string]any{
		"Image": image, "Cmd": cmd, "HostConfig": map[string]any{"CgroupParent": e.parent()},
	}, nil)
}

// measure does an operation n times and returns what one of them took.
func (e *engine) measure(n int, op func(i int) error) (s sample, err error) {
	if err := e.place.settle(); err != nil {
		return s, err
	}
	all, err := e.place.used("")
	if err != nil {
		return s, err
	}
	clients, err := e.place.used(clientGroup)
	if err != nil {
		return s, err
	}
	began := time.Now()
	for i := range n {
		if err := op(i); err != nil {
			return s, err
		}
	}
	s.Wall = ms(time.Since(began)) / float64(n)
	if err := e.place.settle(); err != nil {
		return s, err
	}
	allAfter, err := e.place.used("")
	if err != nil {
		return s, err
	}
	clientsAfter, err := e.place.used(clientGroup)
	s.CPU = ms(allAfter-all) / float64(n)
	s.Engine = s.CPU - ms(clientsAfter-clients)/float64(n)
	return s, err
}

func ms(d time.Duration) float64 { return d.Seconds() * 1000 }
