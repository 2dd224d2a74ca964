package app

import (
	"context"
	"fmt"

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
