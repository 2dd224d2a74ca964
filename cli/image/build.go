package image

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/minke-os/minke/cli/buildcontext"
	"github.com/minke-os/minke/cli/connect"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

type buildOptions struct {
	client.ImageBuildOptions
	args, labels, secrets, ulimits []string
	memory, swap, shm              string
	platform, isolation            string
	iidFile, progress              string
	quiet                          bool
}

func buildCommand(s *connect.Session) *cobra.Command {
	o := buildOptions{}
	c := &cobra.Command{
		Use: "build DIRECTORY|URL|-", Short: "Build an image from a Dockerfile",
		Long: "Build an image from a Dockerfile.\n\nThe build context is a directory, the URL of a tar or of a Dockerfile, or a tar or a Dockerfile on\nstandard input.",
		Example: "  minke build -t web .\n  minke build -f Dockerfile.arm --build-arg VERSION=2 .\n" +
			"  minke build --secret id=token,src=token.txt .\n  minke build - <Dockerfile",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), s, args[0]) },
	}
	f := c.Flags()
	f.StringVarP(&o.Dockerfile, "file", "f", "", "Dockerfile, - is standard input (default DIRECTORY/Dockerfile)")
	f.StringArrayVarP(&o.Tags, "tag", "t", nil, "`name` for the image; may be repeated")
	f.StringArrayVar(&o.args, "build-arg", nil, "build `argument`, KEY=value")
	f.StringArrayVar(&o.labels, "label", nil, "`label`, key=value")
	f.StringArrayVar(&o.secrets, "secret", nil, "`secret` for RUN --mount=type=secret: id=NAME,src=FILE or id=NAME,env=VARIABLE")
	f.StringSliceVar(&o.CacheFrom, "cache-from", nil, "`image` to take unchanged steps from")
	f.StringArrayVar(&o.ExtraHosts, "add-host", nil, "additional `name:address`")
	f.StringVar(&o.Target, "target", "", "`stage` to build")
	f.StringVar(&o.platform, "platform", "", "`platform` to build for, as linux/arm/v7")
	f.StringVar(&o.NetworkMode, "network", "", "`network` of RUN steps")
	f.BoolVar(&o.NoCache, "no-cache", false, "repeat all steps")
	f.BoolVar(&o.PullParent, "pull", false, "look for newer base images")
	f.BoolVar(&o.ForceRemove, "force-rm", false, "remove intermediate containers after a failure too (always so)")
	f.BoolVar(&o.Remove, "rm", true, "remove intermediate containers")
	f.BoolVar(&o.Squash, "squash", false, "refused: layers are small here")
	f.StringVarP(&o.memory, "memory", "m", "", "memory `limit` of RUN steps, as 512m")
	f.StringVar(&o.swap, "memory-swap", "", "`limit` of memory and swap, -1 is none")
	f.StringVar(&o.shm, "shm-size", "", "`size` of /dev/shm in RUN steps")
	f.Int64VarP(&o.CPUShares, "cpu-shares", "c", 0, "relative `weight` of RUN steps")
	f.Int64Var(&o.CPUPeriod, "cpu-period", 0, "period of --cpu-quota in `microseconds`")
	f.Int64Var(&o.CPUQuota, "cpu-quota", 0, "processor time in each period in `microseconds`")
	f.StringVar(&o.CPUSetCPUs, "cpuset-cpus", "", "`processors` for RUN steps, as 0-2")
	f.StringVar(&o.CPUSetMems, "cpuset-mems", "", "memory `nodes` for RUN steps")
	f.StringVar(&o.CgroupParent, "cgroup-parent", "", "`cgroup` to run RUN steps in")
	f.StringVar(&o.isolation, "isolation", "", "only default")
	f.StringArrayVar(&o.SecurityOpt, "security-opt", nil, "security `option` for RUN steps")
	f.StringArrayVar(&o.ulimits, "ulimit", nil, "`limit` for RUN steps, name=soft[:hard]")
	f.StringVar(&o.iidFile, "iidfile", "", "write the image's ID to `file`")
	f.StringVar(&o.progress, "progress", "auto", "how to show progress: auto, plain or tty")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print only the image's ID")
	return c
}

func (o buildOptions) run(ctx context.Context, s *connect.Session, from string) error {
	if err := o.fill(s.Getenv); err != nil {
		return err
	}
	secrets, err := readSecrets(o.secrets, s.Getenv)
	if err != nil {
		return err
	}
	body, err := o.source(from, s.In)
	if err != nil {
		return err
	}
	defer body.Close()
	engine, err := s.Engine(secretsOption(secrets)...)
	if err != nil {
		return err
	}
	defer engine.Close()
	show, end, err := o.view(s)
	if err != nil {
		return err
	}
	id, err := send(ctx, engine, body, o.ImageBuildOptions, show)
	end(err)
	if err == nil && o.quiet {
		fmt.Fprintln(s.Out, id)
	}
	if err == nil && o.iidFile != "" {
		err = os.WriteFile(o.iidFile, []byte(id), 0o666)
	}
	return err
}

// fill turns what flags have as text into options.
func (o *buildOptions) fill(getenv func(string) string) (err error) {
	o.BuildArgs, o.Labels = map[string]*string{}, map[string]string{}
	for _, kv := range o.args {
		k, v, given := strings.Cut(kv, "=")
		if !given { // from our own environment; what is not there leaves the default
			if v = getenv(k); v == "" {
				continue
			}
		}
		o.BuildArgs[k] = &v
	}
	for _, kv := range o.labels {
		k, v, _ := strings.Cut(kv, "=")
		o.Labels[k] = v
	}
	for _, l := range []struct {
		flag, text string
		to         *int64
	}{{"memory", o.memory, &o.Memory}, {"memory-swap", o.swap, &o.MemorySwap}, {"shm-size", o.shm, &o.ShmSize}} {
		switch {
		case l.text == "":
		case l.text == "-1" && l.to == &o.MemorySwap:
			*l.to = -1
		default:
			if *l.to, err = units.RAMInBytes(l.text); err != nil {
				return fmt.Errorf("--%s: %w", l.flag, err)
			}
		}
	}
	for _, text := range o.ulimits {
		u, err := units.ParseUlimit(text)
		if err != nil {
			return fmt.Errorf("--ulimit: %w", err)
		}
		o.Ulimits = append(o.Ulimits, u)
	}
	if o.platform != "" {
		p, err := oci.ParsePlatform(o.platform)
		if err != nil {
			return fmt.Errorf("--platform: %w", err)
		}
		o.Platforms = []ocispec.Platform{{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}}
	}
	o.Isolation = container.Isolation(o.isolation)
	return nil
}

// source is the body of the request: nothing if the engine is to fetch a URL.
func (o *buildOptions) source(from string, in io.Reader) (io.ReadCloser, error) {
	if strings.Contains(from, "://") || strings.HasPrefix(from, "git@") {
		if o.Dockerfile == "" {
			o.Dockerfile = defaultDockerfile
		}
		o.RemoteContext = from
		return io.NopCloser(strings.NewReader("")), nil
	}
	if from == "-" {
		if o.Dockerfile == "-" {
			return nil, errdef.Invalid.Errorf("context and Dockerfile cannot both be standard input")
		}
		return io.NopCloser(in), nil
	}
	bc, err := o.open(from, in)
	if err != nil {
		return nil, err
	}
	o.Dockerfile = bc.Dockerfile()
	return stream(bc), nil
}

const defaultDockerfile = "Dockerfile"

// open lists a directory. The Dockerfile may be elsewhere; its path is relative
// to where we are, as with docker, or else to the directory.
func (o *buildOptions) open(dir string, in io.Reader) (*buildcontext.Context, error) {
	switch o.Dockerfile {
	case "":
		return buildcontext.Open(dir, defaultDockerfile, nil)
	case "-":
		text, err := io.ReadAll(in)
		if err != nil {
			return nil, err
		}
		return buildcontext.OpenWith(dir, text)
	}
	here, err := filepath.Abs(o.Dockerfile)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(here)
	if err != nil { // what is missing, Open reports
		return buildcontext.Open(dir, o.Dockerfile, nil)
	}
	base, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if rel, err := filepath.Rel(base, here); err == nil && filepath.IsLocal(rel) {
		return buildcontext.Open(dir, rel, nil)
	}
	return buildcontext.OpenWith(dir, text)
}

// view is how the output is shown, and what follows it.
func (o *buildOptions) view(s *connect.Session) (show func(string), end func(error), err error) {
	live := s.Live
	switch o.progress {
	case "auto":
	case "plain":
		live = false
	case "tty":
		live = true
	default:
		return nil, nil, errdef.Invalid.Errorf("--progress=%s: want auto, plain or tty", o.progress)
	}
	switch {
	case o.quiet:
		return func(string) {}, func(error) {}, nil
	case live:
		p := newProgress(s)
		return p.write, p.end, nil
	}
	return func(text string) { fmt.Fprint(s.Out, text) }, func(error) {}, nil
}
