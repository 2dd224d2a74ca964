package container

import (
	"context"
	"errors"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/minke-os/minke/cli/connect"
)

type execOptions struct {
	client.ExecCreateOptions
	detach, interactive bool
	detachKeys          string
}

func execCommand(s *connect.Session) *cobra.Command {
	o := execOptions{}
	c := &cobra.Command{
		Use: "exec CONTAINER COMMAND [ARG...]", Short: "Run a command in a running container",
		Example: "  minke exec -it web_1_1_10ca12e1ea5e sh\n  minke exec db cat /data/log",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Cmd = args[1:]
			return o.run(cmd.Context(), s, args[0])
		},
	}
	f := c.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&o.detach, "detach", "d", false, "do not wait for the command")
	f.BoolVarP(&o.interactive, "interactive", "i", false, "pass standard input on")
	f.BoolVarP(&o.TTY, "tty", "t", false, "give it a terminal")
	f.StringArrayVarP(&o.Env, "env", "e", nil, "environment `variable`")
	f.StringVarP(&o.User, "user", "u", "", "`user[:group]` to run as")
	f.StringVarP(&o.WorkingDir, "workdir", "w", "", "`directory` to run in")
	f.BoolVar(&o.Privileged, "privileged", false, "all capabilities")
	f.StringVar(&o.detachKeys, "detach-keys", "", "`keys` that leave the command running")
	return c
}

func (o execOptions) run(ctx context.Context, s *connect.Session, name string) error {
	detach, err := parseKeys(o.detachKeys)
	if err != nil {
		return err
	}
	if o.TTY && o.interactive && !s.InputIsTerminal() {
		return errors.New("the input device is not a TTY; leave -t out when input comes from a pipe")
	}
	engine, err := s.Engine()
	if err != nil {
		return err
	}
	defer engine.Close()
	if !o.detach {
		o.AttachStdin, o.AttachStdout, o.AttachStderr = o.interactive, true, true
	}
	size := client.ConsoleSize{}
	if w, h, ok := s.Size(); ok && o.TTY {
		size = client.ConsoleSize{Width: uint(w), Height: uint(h)}
	}
	o.ConsoleSize = size
	created, err := engine.ExecCreate(ctx, name, o.ExecCreateOptions)
	if err != nil {
		return err
	}
	if o.detach {
		_, err := engine.ExecStart(ctx, created.ID, client.ExecStartOptions{Detach: true, TTY: o.TTY})
		return err
	}
	conn, err := engine.ExecAttach(ctx, created.ID, client.ExecAttachOptions{TTY: o.TTY, ConsoleSize: size})
	if err != nil {
		return err
	}
	err = session{
		s: s, conn: conn.HijackedResponse, tty: o.TTY, stdin: o.interactive, detach: detach,
		resize: func(w, h uint) {
			engine.ExecResize(ctx, created.ID, client.ExecResizeOptions{Width: w, Height: h})
		},
	}.run(ctx)
	if errors.Is(err, errDetached) {
		return nil
	}
	if err != nil {
		return err
	}
	res, err := engine.ExecInspect(ctx, created.ID, client.ExecInspectOptions{})
	s.Exit.Code = res.ExitCode
	return err
}
