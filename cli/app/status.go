package app

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/minke-os/minke/cli/connect"
)

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
	switch {
	case st.AppState != "applied":
		fmt.Fprintf(s.Out, "\nThe supervisor is still at work%s.\n", because(st))
	case st.Error != "":
		fmt.Fprintf(s.Out, "\nThe supervisor says: %s.\n", st.Error)
	}
	return nil
}
