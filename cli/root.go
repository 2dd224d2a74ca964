// Package cli is the minke command: what people type. Each group of commands
// is a package below it; this one puts them together and decides what the
// program is called.
package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/minke-os/minke/cli/app"
	"github.com/minke-os/minke/cli/connect"
	"github.com/minke-os/minke/cli/term"
)

// Main runs the program and returns its exit status.
func Main(ctx context.Context, args []string, version string) int {
	s := &connect.Session{
		Streams: term.Std(os.Getenv("NO_COLOR") != ""),
		Program: strings.TrimSuffix(filepath.Base(args[0]), ".exe"),
		Getenv:  os.Getenv,
		Exit:    &connect.Exit{},
	}
	root := New(s, version)
	root.SetArgs(args[1:])
	if err := root.ExecuteContext(ctx); err != nil {
		if ctx.Err() != nil { // the user interrupted it
			return 130
		}
		fmt.Fprintf(s.Err, "%s: %v\n", s.Program, s.Explain(err))
		return max(s.Exit.Code, 1)
	}
	return s.Exit.Code
}

// New is the tree of all commands.
func New(s *connect.Session, version string) *cobra.Command {
	root := &cobra.Command{
		Use:           s.Program,
		Short:         "Run container applications on devices",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.PersistentFlags().StringVarP(&s.Host, "host", "H", "", "engine's `address` (default: MINKE_HOST, DOCKER_HOST, or the local socket)")
	root.PersistentFlags().StringVar(&s.Supervisor, "supervisor", "", "supervisor's `address` (default: MINKE_SUPERVISOR, or this device)")
	root.AddCommand(app.Commands(s)...)
	return root
}
