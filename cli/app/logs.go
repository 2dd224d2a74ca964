package app

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/minke-os/minke/cli/connect"
	"github.com/minke-os/minke/cli/device"
)

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
