package cli

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/minke-os/minke/cli/connect"
	"github.com/minke-os/minke/cli/container"
	"github.com/minke-os/minke/cli/image"
	"github.com/minke-os/minke/cli/system"
)

// helpWidth is where Docker's help wraps.
const helpWidth = 80

// A list is a flag that may be repeated; Docker calls its type so.
type list struct{ last *string }

func (l list) String() string     { return "" }
func (l list) Set(v string) error { *l.last = v; return nil }
func (l list) Type() string       { return "list" }

// dockerRoot takes Docker's global options and prints its help in Docker's
// form. Options that choose files and levels we do not have are accepted and
// without effect.
func dockerRoot(root *cobra.Command, s *connect.Session, version string) {
	dir := path.Join(cmp.Or(s.Getenv("HOME"), "/"), "."+s.Program)
	if s.Program == "balena" {
		dir = path.Join(cmp.Or(s.Getenv("HOME"), "/"), ".balena-engine")
	}
	root.Long = "A self-sufficient runtime for containers"
	f := root.Flags()
	f.String("config", dir, "Location of client config files")
	f.StringP("context", "c", "", "Name of the context to use to connect to the daemon (overrides DOCKER_HOST env var and default context set with \"docker context use\")")
	f.BoolP("debug", "D", false, "Enable debug mode")
	f.VarP(list{&s.Host}, "host", "H", "Daemon socket(s) to connect to")
	f.StringP("log-level", "l", "info", "Set the logging level (\"debug\"|\"info\"|\"warn\"|\"error\"|\"fatal\")")
	f.BoolVar(&s.TLS.On, "tls", false, "Use TLS; implied by --tlsverify")
	f.StringVar(&s.TLS.CA, "tlscacert", path.Join(dir, "ca.pem"), "Trust certs signed only by this CA")
	f.StringVar(&s.TLS.Cert, "tlscert", path.Join(dir, "cert.pem"), "Path to TLS certificate file")
	f.StringVar(&s.TLS.Key, "tlskey", path.Join(dir, "key.pem"), "Path to TLS key file")
	f.BoolVar(&s.TLS.Verify, "tlsverify", false, "Use TLS and verify the remote")
	f.BoolP("version", "v", false, "Print version information and quit")
	f.Bool("help", false, "Print usage")
	f.Lookup("help").Hidden = true
	commands := slices.Concat(container.Commands(s), []*cobra.Command{container.LogsCommand(s)}, image.Commands(s), system.Commands(s, version))
	slices.SortFunc(commands, func(a, b *cobra.Command) int { return strings.Compare(a.Name(), b.Name()) })
	root.AddCommand(commands...)
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("'%s' is not a %s command.\nSee '%s --help'", args[0], s.Program, s.Program)
		}
		if show, _ := f.GetBool("version"); show {
			fmt.Fprintf(s.Out, "%s version %s, build minke\n", strings.ToUpper(s.Program[:1])+s.Program[1:], version)
			return nil
		}
		return cmd.Help()
	}
	root.Args = cobra.ArbitraryArgs
	root.SetHelpCommand(&cobra.Command{Use: "no-help", Hidden: true})
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { dockerHelp(s, cmd) })
}

func dockerHelp(s *connect.Session, cmd *cobra.Command) {
	usage := cmd.CommandPath() + " [OPTIONS] COMMAND"
	if cmd.HasParent() {
		name, args, _ := strings.Cut(cmd.Use, " ")
		usage = strings.TrimSpace(cmd.Parent().CommandPath() + " " + name + " [OPTIONS] " + args)
	}
	fmt.Fprintf(s.Out, "\nUsage:\t%s\n\n%s\n", usage, cmp.Or(cmd.Long, cmd.Short))
	if cmd.LocalFlags().HasAvailableFlags() {
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" {
				flags.AddFlag(f)
			}
		})
		fmt.Fprintf(s.Out, "\nOptions:\n%s", flags.FlagUsagesWrapped(helpWidth))
	}
	if cmd.HasParent() {
		return
	}
	width := 0
	for _, c := range cmd.Commands() {
		width = max(width, len(c.Name()))
	}
	fmt.Fprintf(s.Out, "\nCommands:\n")
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			fmt.Fprintf(s.Out, "  %-*s %s\n", width+1, c.Name(), c.Short)
		}
	}
	fmt.Fprintf(s.Out, "\nRun '%s COMMAND --help' for more information on a command.\n", s.Program)
}
