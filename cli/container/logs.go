package container

import (
	"context"
	"io"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/minke-os/minke/cli/connect"
)

// LogsCommand prints one container's output. minke itself has logs of services
// instead.
func LogsCommand(s *connect.Session) *cobra.Command {
	o := client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true}
	c := &cobra.Command{
		Use: "logs CONTAINER", Short: "Show what a container printed", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return logs(cmd.Context(), s, args[0], o) },
	}
	f := c.Flags()
	f.BoolVarP(&o.Follow, "follow", "f", false, "go on with new lines as they come")
	f.StringVarP(&o.Tail, "tail", "n", "all", "how many old `lines`")
	f.BoolVarP(&o.Timestamps, "timestamps", "t", false, "print the time of each line")
	f.StringVar(&o.Since, "since", "", "only lines after this `time`, such as 10m")
	f.StringVar(&o.Until, "until", "", "only lines before this `time`")
	return c
}

func logs(ctx context.Context, s *connect.Session, name string, o client.ContainerLogsOptions) error {
	engine, err := s.Engine()
	if err != nil {
		return err
	}
	defer engine.Close()
	c, err := engine.ContainerInspect(ctx, name, client.ContainerInspectOptions{})
	if err != nil {
		return err
	}
	stream, err := engine.ContainerLogs(ctx, c.Container.ID, o)
	if err != nil {
		return err
	}
	defer stream.Close()
	if c.Container.Config.Tty {
		_, err = io.Copy(s.Out, stream)
	} else {
		_, err = stdcopy.StdCopy(s.Out, s.Err, stream)
	}
	return err
}
