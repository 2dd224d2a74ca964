package boot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// HookList runs in order; the first that fails ends it.
type HookList []specs.Hook

// Hooks are those that run in the container's namespaces.
type Hooks struct {
	CreateContainer HookList `json:"createContainer,omitempty"`
	StartContainer  HookList `json:"startContainer,omitempty"`
}

func (h HookList) run(state *specs.State, status specs.ContainerState) error {
	if len(h) == 0 {
		return nil
	}
	if state == nil {
		return errors.New("hooks: there is no state to give them")
	}
	s := *state
	s.Status = status
	return h.Run(&s, (*exec.Cmd).Run)
}

// Run runs the hooks with the state as their input. With run a process runs.
func (h HookList) Run(state *specs.State, run func(*exec.Cmd) error) error {
	input, err := json.Marshal(state)
	if err != nil {
		return err
	}
	for _, hook := range h {
		if err := runHook(hook, input, run); err != nil {
			return fmt.Errorf("hook %s: %w", hook.Path, err)
		}
	}
	return nil
}

func runHook(h specs.Hook, input []byte, run func(*exec.Cmd) error) error {
	ctx := context.Background()
	if h.Timeout != nil {
		var cancel func()
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*h.Timeout)*time.Second)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, h.Path)
	if len(h.Args) > 0 {
		cmd.Args = h.Args
	}
	cmd.Env = append([]string{}, h.Env...) // not ours
	cmd.Stdin = bytes.NewReader(input)
	// A child that outlives a hook may keep its output open.
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := run(cmd)
	if ctx.Err() != nil {
		return fmt.Errorf("took longer than its timeout of %d s", *h.Timeout)
	}
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}
