// Package cli is the minke command: what people type. Each group of commands
// is a package below it; this one puts them together.
//
// Called as docker or balena-engine the program takes Docker's global options
// and has Docker's commands only, so that scripts written for those work.
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
	"github.com/minke-os/minke/cli/container"
	"github.com/minke-os/minke/cli/image"
	"github.com/minke-os/minke/cli/system"
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
	return Run(ctx, s, args[1:], version)
}

// Run is Main with everything it depends on.
func Run(ctx context.Context, s *connect.Session, args []string, version string) int {
	root := New(s, version)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return s.Exit.Code
	case ctx.Err() != nil: // the user interrupted it
		return 130
	}
	fmt.Fprintf(s.Err, "%s: %v\n", s.Program, s.Explain(err))
	return max(s.Exit.Code, 1)
}

// New is the tree of all commands, in the form that the program's name asks
// for.
func New(s *connect.Session, version string) *cobra.Command {
	root := &cobra.Command{
		Use:              s.Program,
		SilenceErrors:    true,
		SilenceUsage:     true,
		TraverseChildren: true, // -H belongs to us before the command's name, to the command after it
	}
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SuggestionsMinimumDistance = 2
	cobra.EnableCommandSorting = false
	if s.Program == "docker" || s.Program == "balena-engine" || s.Program == "balena" {
		dockerRoot(root, s, version)
		return root
	}
	minkeRoot(root, s, version)
	return root
}

func minkeRoot(root *cobra.Command, s *connect.Session, version string) {
	root.Short = "Run container applications on devices"
	root.Long = "minke runs container applications on devices.\n\nThe application is what docker-compose.yml in a directory says; up makes the\ndevice run exactly that. The commands below it act on single containers."
	root.Example = "  minke up                      run the application in this directory\n" +
		"  minke logs -f                 watch what it prints\n" +
		"  minke run --rm -it alpine sh  try something in a container"
	root.Version = version
	root.Flags().StringVarP(&s.Host, "host", "H", "", "engine's `address` (default: MINKE_HOST, DOCKER_HOST, or the local socket)")
	root.PersistentFlags().StringVar(&s.Supervisor, "supervisor", "", "supervisor's `address` (default: MINKE_SUPERVISOR, or this device)")
	for _, g := range []struct {
		id, title string
		commands  []*cobra.Command
	}{
		{"app", "The application:", app.Commands(s)},
		{"container", "Containers:", container.Commands(s)},
		{"image", "Images:", append(image.Commands(s), image.DeltaCommand(s))},
		{"system", "Engine:", append(system.Commands(s, version), system.StoreCommand(s))},
	} {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, c := range g.commands {
			c.GroupID = g.id
			root.AddCommand(c)
		}
	}
	root.SetHelpCommand(&cobra.Command{Use: "no-help", Hidden: true, GroupID: "system"})
	root.SetCompletionCommandGroupID("system")
	root.Args = cobra.ArbitraryArgs
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		hint := "."
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			hint = fmt.Sprintf("; did you mean %q?", near[0])
		}
		return fmt.Errorf("there is no command %q%s See \"%s --help\"", args[0], hint, s.Program)
	}
}
