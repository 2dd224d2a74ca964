// Package container has the docker-style commands for containers: ps, run,
// exec, stop, start, restart, kill, rm, logs' engine side and the like. They
// talk to the engine.
package container

import (
	"context"
	"errors"
	"fmt"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/minke-os/minke/cli/connect"
)

// Commands are the package's.
func Commands(s *connect.Session) []*cobra.Command {
	return []*cobra.Command{
		psCommand(s), runCommand(s), execCommand(s),
		stopCommand(s), startCommand(s), restartCommand(s), killCommand(s), rmCommand(s),
	}
}

// each does something to every container named, going on after a failure.
func each(ctx context.Context, s *connect.Session, names []string, do func(context.Context, *client.Client, string) error) error {
	engine, err := s.Engine()
	if err != nil {
		return err
	}
	defer engine.Close()
	var errs []error
	for _, name := range names {
		if err := do(ctx, engine, name); err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintln(s.Out, name)
	}
	return errors.Join(errs...)
}

func stopCommand(s *connect.Session) *cobra.Command {
	var seconds int
	c := &cobra.Command{
		Use: "stop CONTAINER...", Short: "Stop containers", Args: cobra.MinimumNArgs(1),
		Example: "  minke stop web_1_1_10ca12e1ea5e",
		RunE: func(cmd *cobra.Command, names []string) error {
			return each(cmd.Context(), s, names, func(ctx context.Context, e *client.Client, name string) error {
				_, err := e.ContainerStop(ctx, name, client.ContainerStopOptions{Timeout: timeout(cmd, seconds)})
				return err
			})
		},
	}
	c.Flags().IntVarP(&seconds, "time", "t", 10, "`seconds` before the container is killed")
	return c
}

// timeout is nil unless asked for: the container's own applies then.
func timeout(cmd *cobra.Command, seconds int) *int {
	if !cmd.Flags().Changed("time") {
		return nil
	}
	return &seconds
}

func startCommand(s *connect.Session) *cobra.Command {
	return &cobra.Command{
		Use: "start CONTAINER...", Short: "Start stopped containers", Args: cobra.MinimumNArgs(1),
		Example: "  minke start web_1_1_10ca12e1ea5e",
		RunE: func(cmd *cobra.Command, names []string) error {
			return each(cmd.Context(), s, names, func(ctx context.Context, e *client.Client, name string) error {
				_, err := e.ContainerStart(ctx, name, client.ContainerStartOptions{})
				return err
			})
		},
	}
}

func restartCommand(s *connect.Session) *cobra.Command {
	var seconds int
	c := &cobra.Command{
		Use: "restart CONTAINER...", Short: "Stop and start containers", Args: cobra.MinimumNArgs(1),
		Example: "  minke restart web_1_1_10ca12e1ea5e",
		RunE: func(cmd *cobra.Command, names []string) error {
			return each(cmd.Context(), s, names, func(ctx context.Context, e *client.Client, name string) error {
				_, err := e.ContainerRestart(ctx, name, client.ContainerRestartOptions{Timeout: timeout(cmd, seconds)})
				return err
			})
		},
	}
	c.Flags().IntVarP(&seconds, "time", "t", 10, "`seconds` before the container is killed")
	return c
}

func killCommand(s *connect.Session) *cobra.Command {
	var signal string
	c := &cobra.Command{
		Use: "kill CONTAINER...", Short: "Send a signal to containers", Args: cobra.MinimumNArgs(1),
		Example: "  minke kill -s HUP nginx",
		RunE: func(cmd *cobra.Command, names []string) error {
			return each(cmd.Context(), s, names, func(ctx context.Context, e *client.Client, name string) error {
				_, err := e.ContainerKill(ctx, name, client.ContainerKillOptions{Signal: signal})
				return err
			})
		},
	}
	c.Flags().StringVarP(&signal, "signal", "s", "KILL", "`signal` to send")
	return c
}

func rmCommand(s *connect.Session) *cobra.Command {
	var o client.ContainerRemoveOptions
	c := &cobra.Command{
		Use: "rm CONTAINER...", Short: "Remove containers", Args: cobra.MinimumNArgs(1),
		Example: "  minke rm -f old",
		RunE: func(cmd *cobra.Command, names []string) error {
			return each(cmd.Context(), s, names, func(ctx context.Context, e *client.Client, name string) error {
				_, err := e.ContainerRemove(ctx, name, o)
				return err
			})
		},
	}
	c.Flags().BoolVarP(&o.Force, "force", "f", false, "remove running containers too")
	c.Flags().BoolVarP(&o.RemoveVolumes, "volumes", "v", false, "also remove the containers' anonymous volumes")
	return c
}
