package app

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/minke-os/minke/cli/connect"
	"github.com/minke-os/minke/cli/device"
	"github.com/minke-os/minke/compose"
)

func downCommand(s *connect.Session) *cobra.Command {
	var volumes, force bool
	c := &cobra.Command{
		Use:     "down",
		Short:   "Stop the application and remove its containers",
		Example: "  minke down\n  minke down --volumes",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return down(cmd.Context(), s, volumes, force) },
	}
	c.Flags().BoolVarP(&volumes, "volumes", "v", false, "also remove the application's volumes, with their data")
	c.Flags().BoolVar(&force, "force", false, "also stop services that hold an update lock")
	return c
}

func down(ctx context.Context, s *connect.Session, volumes, force bool) error {
	d := supervisor(s)
	local, err := d.Target(ctx)
	if err != nil {
		return err
	}
	target, err := compose.Target(nil, local, force)
	if err != nil {
		return err
	}
	if err := d.SetTarget(ctx, target); err != nil {
		return err
	}
	show := newProgress(s)
	st, err := waitForStatus(ctx, d, func(st device.Status) bool {
		if st.Error != show.note && st.Error != "" {
			fmt.Fprintf(s.Err, "  %s\n", st.Error)
		}
		show.note = st.Error
		return st.AppState == "applied" && len(st.Containers) == 0
	})
	if err != nil {
		return fmt.Errorf("%w%s", err, because(st))
	}
	if volumes {
		return removeVolumes(ctx, s)
	}
	return nil
}

// removeVolumes removes the volumes that the supervisor made, and no others.
func removeVolumes(ctx context.Context, s *connect.Session) error {
	engine, err := s.Engine()
	if err != nil {
		return err
	}
	defer engine.Close()
	list, err := engine.VolumeList(ctx, client.VolumeListOptions{Filters: make(client.Filters).Add("label", "io.balena.supervised")})
	if err != nil {
		return err
	}
	for _, v := range list.Items {
		if _, err := engine.VolumeRemove(ctx, v.Name, client.VolumeRemoveOptions{}); err != nil {
			return err
		}
		fmt.Fprintf(s.Err, "removed volume %s\n", v.Name)
	}
	return nil
}

func statusCommand(s *connect.Session) *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Show what the application's services are doing",
		Example: "  minke status\n  minke --supervisor 192.168.1.20 status",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return status(cmd.Context(), s) },
	}
}

func status(ctx context.Context, s *connect.Session) error {
	st, err := supervisor(s).Status(ctx)
	if err != nil {
		return err
	}
	if len(names(st)) == 0 {
		fmt.Fprintf(s.Out, "No application. Run \"%s up\" in a project's directory.\n", s.Program)
		return nil
	}
	show := newProgress(s)
	width := 0
	for _, name := range names(st) {
		width = max(width, len(name))
	}
	for _, name := range names(st) {
		id := ""
		if c, ok := container(st, name); ok {
			id = c.ContainerID[:min(12, len(c.ContainerID))]
		}
		fmt.Fprintf(s.Out, "%-*s  %-12s  %s\n", width, name, id, show.word(st, name))
	}
	if st.AppState != "applied" {
		fmt.Fprintf(s.Out, "\nThe supervisor is still at work%s.\n", because(st))
	}
	return nil
}

type logsOptions struct {
	follow bool
	tail   int
	system bool
}

func logsCommand(s *connect.Session) *cobra.Command {
	o := logsOptions{}
	c := &cobra.Command{
		Use:     "logs [SERVICE...]",
		Short:   "Show what services print",
		Example: "  minke logs\n  minke logs -f web db\n  minke logs -n 20",
		RunE:    func(cmd *cobra.Command, services []string) error { return o.run(cmd.Context(), s, services) },
	}
	c.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on with new lines as they come")
	c.Flags().IntVarP(&o.tail, "tail", "n", 100, "how many old `lines` of each service, -1 for all")
	c.Flags().BoolVar(&o.system, "system", false, "also show what the supervisor does")
	return c
}

func (o logsOptions) run(ctx context.Context, s *connect.Session, services []string) error {
	d := supervisor(s)
	st, err := d.Status(ctx)
	if err != nil {
		return err
	}
	width := 6
	for _, name := range names(st) {
		width = max(width, len(name))
	}
	for _, name := range services {
		if !slices.Contains(names(st), name) {
			return fmt.Errorf("there is no service %q; there is %s", name, strings.Join(names(st), ", "))
		}
	}
	return d.Logs(ctx, o.tail, o.follow, func(l device.Line) error {
		name := l.ServiceName
		switch {
		case l.IsSystem && !o.system:
			return nil
		case l.IsSystem:
			name = "system"
		case len(services) > 0 && !slices.Contains(services, name):
			return nil
		}
		out := s.Out
		if l.IsStdErr {
			out = s.Err
		}
		_, err := fmt.Fprintf(out, "%s %s\n", s.Paint(color(name), fmt.Sprintf("%-*s |", width, name)), l.Message)
		return err
	})
}

// color is a service's own, the same each time.
func color(name string) int {
	h := fnv.New32()
	h.Write([]byte(name))
	return 32 + int(h.Sum32()%5)
}
