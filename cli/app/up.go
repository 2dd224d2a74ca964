package app

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/minke-os/minke/cli/buildcontext"
	"github.com/minke-os/minke/cli/connect"
	"github.com/minke-os/minke/cli/device"
	"github.com/minke-os/minke/cli/image"
	"github.com/minke-os/minke/compose"
)

type upOptions struct {
	dir      string
	files    []string
	profiles []string
	project  string
	build    bool
	pull     bool
	detach   bool
	force    bool
	wait     time.Duration
}

func upCommand(s *connect.Session) *cobra.Command {
	o := upOptions{}
	c := &cobra.Command{
		Use:   "up [DIRECTORY]",
		Short: "Build and run the application in a directory",
		Long: `Build and run the application in a directory.

Reads docker-compose.yml (or a lone Dockerfile), builds the images whose files
changed, and hands the result to the supervisor, which makes the device run
exactly that: it starts what is new, replaces what changed, removes what is
gone, and leaves everything else alone. Ends when all services run and those
with a health check are healthy.`,
		Example: "  minke up\n  minke up examples/greenhouse\n  minke up -f docker-compose.yml -f docker-compose.dev.yml --profile debug",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.dir = args[0]
			}
			return o.run(cmd.Context(), s)
		},
	}
	f := c.Flags()
	f.StringArrayVarP(&o.files, "file", "f", nil, "compose `file`; may be repeated, later ones win")
	f.StringArrayVar(&o.profiles, "profile", nil, "also run services of this `profile`")
	f.StringVar(&o.project, "project", "", "`name` of the application (default: the directory's)")
	f.BoolVar(&o.build, "build", false, "build images even if nothing changed")
	f.BoolVar(&o.pull, "pull", false, "look for newer base images; implies --build")
	f.BoolVar(&o.force, "force", false, "also replace services that hold an update lock")
	f.BoolVarP(&o.detach, "detach", "d", false, "return as soon as the supervisor has the order")
	f.DurationVar(&o.wait, "wait", 5*time.Minute, "how long to wait for the services")
	return c
}

func (o upOptions) run(ctx context.Context, s *connect.Session) error {
	project, err := compose.Load(ctx, compose.Options{
		Dir: o.dir, Files: o.files, Profiles: o.profiles, Name: o.project, Env: os.Environ(),
	})
	if err != nil {
		return err
	}
	for _, n := range project.Notices {
		fmt.Fprintf(s.Err, "%s %s\n", s.Paint(33, "note:"), n)
	}
	d := supervisor(s)
	info, err := d.Info(ctx)
	if err != nil {
		return err
	}
	if err := o.images(ctx, s, project, info); err != nil {
		return err
	}
	local, err := d.Target(ctx)
	if err != nil {
		return err
	}
	target, err := compose.Target(project, local, o.force)
	if err != nil {
		return err
	}
	if err := d.SetTarget(ctx, target); err != nil {
		return err
	}
	if o.detach {
		return nil
	}
	return o.follow(ctx, s, d, project)
}

// images builds what changed and pulls what is not there, one after the other:
// a device has little memory and the builder is rarely bound by one core. What
// cannot be had is an error before anything that runs is touched.
func (o upOptions) images(ctx context.Context, s *connect.Session, p *compose.Project, info device.Info) error {
	engine, err := s.Engine()
	if err != nil {
		return err
	}
	defer engine.Close()
	for i, svc := range p.Services {
		if svc.Build == nil {
			if err := o.fetch(ctx, s, engine, svc); err != nil {
				return fmt.Errorf("image %s of service %s: %w", svc.Image, svc.Name, err)
			}
			continue
		}
		if err := o.image(ctx, s, engine, svc, info); err != nil {
			if client.IsErrConnectionFailed(err) {
				return err
			}
			return fmt.Errorf("build %s: %w", svc.Name, err)
		}
		built, err := engine.ImageInspect(ctx, compose.LocalImage(svc.Name))
		if err != nil {
			return fmt.Errorf("build %s: %w", svc.Name, err)
		}
		p.Services[i].Built = built.ID
	}
	return nil
}

// fetch pulls a service's image unless it is there.
func (o upOptions) fetch(ctx context.Context, s *connect.Session, engine *client.Client, svc compose.Service) error {
	_, err := engine.ImageInspect(ctx, svc.Image)
	if err == nil && !o.pull || err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return image.Pull(ctx, s, engine, svc.Image, func(line string) { fmt.Fprintf(s.Err, "pull %s: %s\n", svc.Name, line) })
}

// labelContext remembers what an image was built from.
const labelContext = "io.minke.build-context"

func (o upOptions) image(ctx context.Context, s *connect.Session, engine *client.Client, svc compose.Service, info device.Info) error {
	file, err := svc.Build.FileFor(info.DeviceType, info.Arch)
	if err != nil {
		return err
	}
	bc, err := buildcontext.Open(svc.Build.Context, file, expand(file, svc.Name, info))
	if err != nil {
		return err
	}
	digest, err := bc.Digest(file, svc.Build.Target, fmt.Sprint(svc.Build.Args), fmt.Sprint(svc.Build.Labels))
	if err != nil {
		return err
	}
	fresh, err := builtFrom(ctx, engine, compose.LocalImage(svc.Name), digest)
	if err != nil {
		return err
	}
	if fresh && !o.build && !o.pull {
		fmt.Fprintf(s.Err, "%s %s is up to date\n", s.Paint(2, "build"), svc.Name)
		return nil
	}
	labels := maps.Clone(svc.Build.Labels)
	labels[labelContext] = digest
	labels["io.resin.local.image"], labels["io.resin.local.service"] = "1", svc.Name
	args := map[string]*string{}
	for k, v := range svc.Build.Args {
		args[k] = &v
	}
	progress := newBuildProgress(s, svc.Name)
	_, err = image.Build(ctx, engine, bc, client.ImageBuildOptions{
		Tags: []string{compose.LocalImage(svc.Name)}, Dockerfile: file, Target: svc.Build.Target,
		BuildArgs: args, Labels: labels, CacheFrom: svc.Build.CacheFrom, ExtraHosts: svc.Build.ExtraHosts,
		PullParent: o.pull, Remove: true, ForceRemove: true,
	}, progress.line)
	progress.end(err)
	return err
}

// expand fills in the variables of a Dockerfile.template.
func expand(file, service string, info device.Info) func([]byte) []byte {
	if !strings.HasSuffix(file, ".template") {
		return nil
	}
	r := strings.NewReplacer(
		"%%BALENA_MACHINE_NAME%%", info.DeviceType, "%%RESIN_MACHINE_NAME%%", info.DeviceType,
		"%%BALENA_ARCH%%", info.Arch, "%%RESIN_ARCH%%", info.Arch,
		"%%BALENA_SERVICE_NAME%%", service, "%%BALENA_APP_NAME%%", "localapp",
	)
	return func(b []byte) []byte { return []byte(r.Replace(string(b))) }
}

// builtFrom reports whether an image exists and was built from this context.
func builtFrom(ctx context.Context, engine *client.Client, ref, digest string) (bool, error) {
	img, err := engine.ImageInspect(ctx, ref)
	if cerrdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return img.Config != nil && img.Config.Labels[labelContext] == digest, nil
}

// follow shows the device converge and judges the result.
func (o upOptions) follow(ctx context.Context, s *connect.Session, d *device.Client, p *compose.Project) error {
	ctx, cancel := context.WithTimeout(ctx, o.wait)
	defer cancel()
	show := newProgress(s)
	defer show.end()
	started := map[string]bool{}
	steady, needed, misses := 0, 1, 0
	for {
		st, err := d.Status(ctx)
		switch {
		case err != nil && ctx.Err() == nil && misses < patience:
			misses++ // supervisor or engine may just be starting again
			err = nil
		case err == nil:
			misses = 0
			show.update(p, st)
			var done bool
			if done, err = o.judge(ctx, d, p, st, started); !done {
				steady, needed = 0, settleTime
			} else if steady++; steady >= needed {
				show.end()
				report(s, p)
				if st.Trial > 0 {
					fmt.Fprintf(s.Err, "%s if it fails within %d s, the device goes back to what ran before\n", s.Paint(33, "note:"), st.Trial)
				}
				return nil
			}
		}
		if err == nil {
			err = pause(ctx)
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("not everything runs after %v%s; see \"minke status\" and \"minke logs\"", o.wait, because(st))
		}
		if err != nil {
			return err
		}
	}
}

// patience is for how many looks in a row the supervisor may be silent.
const patience = int(10 * time.Second / poll)

// settleTime is for how many looks a service must run after it started: one
// that dies at once does not count.
const settleTime = int(time.Second / poll)

func because(st device.Status) string {
	switch {
	case st.Error == "":
		return ""
	case strings.Contains(st.Error, "Lockfile exists"):
		return ": " + st.Error + " (up --force overrides it)"
	}
	return ": " + st.Error
}

// judge reports whether all services are as they should be. A service that a
// person stopped, or that had given up, is started once: up means run it.
func (o upOptions) judge(ctx context.Context, d *device.Client, p *compose.Project, st device.Status, started map[string]bool) (bool, error) {
	if st.Undone {
		return false, fmt.Errorf("%s; see \"minke logs\"", st.Error)
	}
	if st.AppState != "applied" {
		return false, nil
	}
	done := true
	for _, svc := range p.Services {
		c, ok := container(st, svc.Name)
		switch {
		case ok && (c.Health == "healthy" || c.Health == "" && c.Status == "Running"):
		case ok && c.Status == "exited" && finished(svc, c):
		case ok && c.Status == "exited" && !started[svc.Name]:
			started[svc.Name] = true
			done = false
			if err := d.Service(ctx, "start", svc.Name); err != nil {
				return false, err
			}
		case ok && c.Status == "exited":
			return false, fmt.Errorf("service %s exits with code %s; see \"minke logs %s\"", svc.Name, exitCode(c), svc.Name)
		case ok && c.Status == "restarting" && c.Restarts >= tooOften:
			return false, fmt.Errorf("service %s exits again and again, last with code %s; see \"minke logs %s\"", svc.Name, exitCode(c), svc.Name)
		default:
			done = false
		}
	}
	return done, nil
}

// exitCode is a container's; supervisors other than ours do not tell.
func exitCode(c device.Container) string {
	if c.ExitCode == nil {
		return "unknown"
	}
	return fmt.Sprint(*c.ExitCode)
}

// tooOften is how many restarts are no longer bad luck.
const tooOften = 3

// finished is that a service is meant to end and did so well.
func finished(svc compose.Service, c device.Container) bool {
	restart, _ := svc.Composition["restart"].(string)
	return c.ExitCode != nil && *c.ExitCode == 0 && (restart == "no" || restart == "on-failure")
}

// report says where the application can be reached.
func report(s *connect.Session, p *compose.Project) {
	var lines []string
	for _, svc := range p.Services {
		ports, _ := svc.Composition["ports"].([]any)
		for _, port := range ports {
			if u := address(s, fmt.Sprint(port)); u != "" {
				lines = append(lines, fmt.Sprintf("  %-12s %s", svc.Name, u))
			}
		}
	}
	slices.Sort(lines)
	fmt.Fprintf(s.Out, "%s %s runs.\n", s.Paint(32, "✓"), p.Name)
	for _, l := range lines {
		fmt.Fprintln(s.Out, l)
	}
	fmt.Fprintf(s.Err, "\n  %s status   %s logs -f   %s down\n", s.Program, s.Program, s.Program)
}
