// Package system has the commands about the engine itself and about any
// object: version, info, inspect as docker has them, and store, which it does not.
package system

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/minke-os/minke/cli/connect"
	"github.com/minke-os/minke/cli/format"
)

// Commands are the package's.
func Commands(s *connect.Session, version string) []*cobra.Command {
	return []*cobra.Command{versionCommand(s, version), infoCommand(s), inspectCommand(s)}
}

func versionCommand(s *connect.Session, version string) *cobra.Command {
	var form string
	c := &cobra.Command{
		Use: "version", Short: "Show versions of client and engine", Args: cobra.NoArgs, Example: "  minke version",
		RunE: func(cmd *cobra.Command, _ []string) error { return showVersion(cmd.Context(), s, version, form) },
	}
	c.Flags().StringVarP(&form, "format", "f", "", "print through a Go `template`")
	return c
}

type versions struct {
	Client struct{ Version, Os, Arch, GoVersion string }
	Server *client.ServerVersionResult
}

func showVersion(ctx context.Context, s *connect.Session, version, form string) error {
	var v versions
	v.Client.Version, v.Client.Os, v.Client.Arch, v.Client.GoVersion = version, runtime.GOOS, runtime.GOARCH, runtime.Version()
	engine, err := s.Engine()
	if err != nil {
		return err
	}
	defer engine.Close()
	server, err := engine.ServerVersion(ctx, client.ServerVersionOptions{})
	if err == nil {
		v.Server = &server
	}
	if form != "" {
		return errors.Join(err, format.Value(s.Out, form, v))
	}
	fmt.Fprintf(s.Out, "Client:\n Version:      %s\n Go version:   %s\n OS/Arch:      %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	if err != nil {
		return err
	}
	fmt.Fprintf(s.Out, "\nServer: %s\n Version:      %s\n API version:  %s (minimum %s)\n OS/Arch:      %s/%s\n",
		server.Platform.Name, server.Version, server.APIVersion, server.MinAPIVersion, server.Os, server.Arch)
	return nil
}

func infoCommand(s *connect.Session) *cobra.Command {
	var form string
	c := &cobra.Command{
		Use: "info", Short: "Show what the engine runs on", Args: cobra.NoArgs, Example: "  minke info --format '{{.Driver}}'",
		RunE: func(cmd *cobra.Command, _ []string) error { return showInfo(cmd.Context(), s, form) },
	}
	c.Flags().StringVarP(&form, "format", "f", "", "print through a Go `template`")
	return c
}

func showInfo(ctx context.Context, s *connect.Session, form string) error {
	engine, err := s.Engine()
	if err != nil {
		return err
	}
	defer engine.Close()
	res, err := engine.Info(ctx, client.InfoOptions{})
	if err != nil {
		return err
	}
	i := res.Info
	if form != "" {
		return format.Value(s.Out, form, i)
	}
	for _, line := range []struct {
		name  string
		value any
	}{
		{"Containers", i.Containers}, {" Running", i.ContainersRunning}, {" Paused", i.ContainersPaused}, {" Stopped", i.ContainersStopped},
		{"Images", i.Images}, {"Server Version", i.ServerVersion}, {"Storage Driver", i.Driver}, {"Logging Driver", i.LoggingDriver},
		{"Cgroup Driver", i.CgroupDriver}, {"Cgroup Version", i.CgroupVersion}, {"Default Runtime", i.DefaultRuntime},
		{"Kernel Version", i.KernelVersion}, {"Operating System", i.OperatingSystem}, {"OSType", i.OSType}, {"Architecture", i.Architecture},
		{"CPUs", i.NCPU}, {"Total Memory", format.Size(i.MemTotal)}, {"Name", i.Name}, {"ID", i.ID}, {"Docker Root Dir", i.DockerRootDir},
	} {
		fmt.Fprintf(s.Out, "%s: %v\n", line.name, line.value)
	}
	return nil
}

type inspectOptions struct {
	format, kind string
	size         bool
}

func inspectCommand(s *connect.Session) *cobra.Command {
	o := inspectOptions{}
	c := &cobra.Command{
		Use: "inspect NAME...", Short: "Show all about containers, images, volumes or networks",
		Example: "  minke inspect web_1_1_10ca12e1ea5e\n  minke inspect -f '{{.State.Status}}' web_1_1_10ca12e1ea5e",
		Args:    cobra.MinimumNArgs(1),
		RunE:    func(cmd *cobra.Command, names []string) error { return o.run(cmd.Context(), s, names) },
	}
	c.Flags().StringVarP(&o.format, "format", "f", "", "print through a Go `template`")
	c.Flags().StringVar(&o.kind, "type", "", "only `container`, image, volume or network")
	c.Flags().BoolVarP(&o.size, "size", "s", false, "compute the size of containers")
	return c
}

func (o inspectOptions) run(ctx context.Context, s *connect.Session, names []string) error {
	engine, err := s.Engine()
	if err != nil {
		return err
	}
	defer engine.Close()
	found := []any{}
	var errs []error
	for _, name := range names {
		v, err := o.find(ctx, engine, name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if o.format == "" {
			found = append(found, v)
			continue
		}
		if err := format.Value(s.Out, o.format, v); err != nil {
			return err
		}
	}
	if o.format == "" {
		enc := json.NewEncoder(s.Out)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "    ")
		errs = append(errs, enc.Encode(found))
	}
	return errors.Join(errs...)
}

// find tries the kinds of objects in the order in which people mean them.
func (o inspectOptions) find(ctx context.Context, e *client.Client, name string) (any, error) {
	kinds := []struct {
		name string
		get  func() (any, error)
	}{
		{"container", func() (any, error) {
			r, err := e.ContainerInspect(ctx, name, client.ContainerInspectOptions{Size: o.size})
			return r.Container, err
		}},
		{"image", func() (any, error) {
			r, err := e.ImageInspect(ctx, name)
			return r.InspectResponse, err
		}},
		{"volume", func() (any, error) {
			r, err := e.VolumeInspect(ctx, name, client.VolumeInspectOptions{})
			return r.Volume, err
		}},
		{"network", func() (any, error) {
			r, err := e.NetworkInspect(ctx, name, client.NetworkInspectOptions{})
			return r.Network, err
		}},
	}
	for _, k := range kinds {
		if o.kind != "" && o.kind != k.name {
			continue
		}
		v, err := k.get()
		if cerrdefs.IsNotFound(err) {
			continue
		}
		return v, err
	}
	return nil, fmt.Errorf("no such object: %s", name)
}
