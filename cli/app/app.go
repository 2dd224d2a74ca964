// Package app has the commands for a device's application as a whole: up,
// down, status, logs, and start, stop and restart of its services. They talk
// to the supervisor, and to the engine only to build.
package app

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"github.com/minke-os/minke/cli/connect"
	"github.com/minke-os/minke/cli/device"
)

// Commands are the package's.
func Commands(s *connect.Session) []*cobra.Command {
	return []*cobra.Command{upCommand(s), downCommand(s), statusCommand(s), logsCommand(s), serviceCommand(s)}
}

func supervisor(s *connect.Session) *device.Client { return device.New(s.SupervisorURL()) }

func serviceCommand(s *connect.Session) *cobra.Command {
	c := &cobra.Command{
		Use:   "service",
		Short: "Start, stop or restart services of the application",
	}
	for action, short := range map[string]string{
		"start":   "Start a stopped service",
		"stop":    "Stop a service; it stays stopped until it is started again",
		"restart": "Replace a service's container by a new one",
	} {
		c.AddCommand(&cobra.Command{
			Use: action + " SERVICE...", Short: short, Args: cobra.MinimumNArgs(1),
			Example: "  minke service " + action + " web",
			RunE: func(cmd *cobra.Command, services []string) error {
				for _, name := range services {
					if err := supervisor(s).Service(cmd.Context(), action, name); err != nil {
						return err
					}
				}
				return nil
			},
		})
	}
	return c
}

// names are the services of a status, in order.
func names(st device.Status) []string {
	var out []string
	for _, i := range st.Images {
		out = append(out, i.ServiceName)
	}
	for _, c := range st.Containers {
		out = append(out, c.ServiceName)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func container(st device.Status, service string) (device.Container, bool) {
	for _, c := range slices.Backward(st.Containers) {
		if c.ServiceName == service {
			return c, true
		}
	}
	return device.Container{}, false
}

// waitForStatus asks until the supervisor answers with what ok wants.
func waitForStatus(ctx context.Context, d *device.Client, ok func(device.Status) bool) (device.Status, error) {
	for {
		st, err := d.Status(ctx)
		if err != nil || ok(st) {
			return st, err
		}
		if err := pause(ctx); err != nil {
			return st, err
		}
	}
}
