package image

import (
	"context"
	"fmt"
	"strings"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/minke-os/minke/cli/buildcontext"
	"github.com/minke-os/minke/cli/connect"
)

type buildOptions struct {
	client.ImageBuildOptions
	args, labels []string
	quiet        bool
}

func buildCommand(s *connect.Session) *cobra.Command {
	o := buildOptions{}
	c := &cobra.Command{
		Use: "build DIRECTORY", Short: "Build an image from a Dockerfile",
		Example: "  minke build -t web .\n  minke build -f Dockerfile.arm --build-arg VERSION=2 .",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), s, args[0]) },
	}
	f := c.Flags()
	f.StringVarP(&o.Dockerfile, "file", "f", "Dockerfile", "Dockerfile below the directory")
	f.StringArrayVarP(&o.Tags, "tag", "t", nil, "`name` for the image; may be repeated")
	f.StringArrayVar(&o.args, "build-arg", nil, "build `argument`, KEY=value")
	f.StringArrayVar(&o.labels, "label", nil, "`label`, key=value")
	f.StringArrayVar(&o.CacheFrom, "cache-from", nil, "`image` to take unchanged steps from")
	f.StringArrayVar(&o.ExtraHosts, "add-host", nil, "additional `name:address`")
	f.StringVar(&o.Target, "target", "", "`stage` to build")
	f.StringVar(&o.NetworkMode, "network", "", "`network` of RUN steps")
	f.BoolVar(&o.NoCache, "no-cache", false, "repeat all steps")
	f.BoolVar(&o.PullParent, "pull", false, "look for newer base images")
	f.BoolVar(&o.ForceRemove, "force-rm", false, "remove intermediate containers after a failure too")
	f.BoolVar(&o.Remove, "rm", true, "remove intermediate containers")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print only the image's ID")
	return c
}

func (o buildOptions) run(ctx context.Context, s *connect.Session, dir string) error {
	engine, err := s.Engine()
	if err != nil {
		return err
	}
	defer engine.Close()
	bc, err := buildcontext.Open(dir, o.Dockerfile, nil)
	if err != nil {
		return err
	}
	o.BuildArgs, o.Labels = map[string]*string{}, map[string]string{}
	for _, kv := range o.args {
		k, v, given := strings.Cut(kv, "=")
		o.BuildArgs[k] = &v
		if !given { // from our own environment
			v = s.Getenv(k)
		}
	}
	for _, kv := range o.labels {
		k, v, _ := strings.Cut(kv, "=")
		o.Labels[k] = v
	}
	id, err := Build(ctx, engine, bc, o.ImageBuildOptions, func(text string) {
		if !o.quiet {
			fmt.Fprint(s.Out, text)
		}
	})
	if err == nil && o.quiet {
		fmt.Fprintln(s.Out, id)
	}
	return err
}
