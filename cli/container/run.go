package container

import (
	"context"
	"errors"
	"fmt"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/minke-os/minke/cli/connect"
	"github.com/minke-os/minke/cli/image"
)

func runCommand(s *connect.Session) *cobra.Command {
	o := runOptions{}
	c := &cobra.Command{
		Use:   "run IMAGE [COMMAND] [ARG...]",
		Short: "Create a container and run a command in it",
		Example: "  minke run --rm -it alpine sh\n  minke run -d --name web -p 8080:80 -v data:/data nginx\n" +
			"  minke run --rm alpine cat /etc/os-release",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.image, o.command = args[0], args[1:]
			return o.run(cmd.Context(), s)
		},
	}
	c.Flags().SetInterspersed(false)              // what follows the image belongs to the command
	c.Flags().Bool("help", false, "help for run") // -h is the host name
	o.flags(c.Flags())
	return c
}

func (o *runOptions) run(ctx context.Context, s *connect.Session) error {
	create, err := o.create()
	if err != nil {
		return err
	}
	detach, err := parseKeys(o.detachKeys)
	if err != nil {
		return err
	}
	if o.tty && o.interactive && !s.InputIsTerminal() {
		return errors.New("the input device is not a TTY; leave -t out when input comes from a pipe")
	}
	engine, err := s.Engine()
	if err != nil {
		return err
	}
	defer engine.Close()
	s.Exit.Code = 125 // until the container has run
	id, err := o.make(ctx, s, engine, create)
	if err != nil {
		return err
	}
	if o.detach {
		if _, err := engine.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
			return startError(s, err)
		}
		s.Exit.Code = 0
		fmt.Fprintln(s.Out, id)
		return nil
	}
	return o.attached(ctx, s, engine, id, detach)
}

// make creates the container, downloading the image if it is missing.
func (o *runOptions) make(ctx context.Context, s *connect.Session, engine *client.Client, create client.ContainerCreateOptions) (string, error) {
	if o.pull == "always" {
		if err := pull(ctx, s, engine, o.image); err != nil {
			return "", err
		}
	}
	res, err := engine.ContainerCreate(ctx, create)
	if cerrdefs.IsNotFound(err) && o.pull == "missing" {
		fmt.Fprintf(s.Err, "Unable to find image '%s' locally\n", o.image)
		if err := pull(ctx, s, engine, o.image); err != nil {
			return "", err
		}
		res, err = engine.ContainerCreate(ctx, create)
	}
	if err != nil {
		return "", err
	}
	for _, w := range res.Warnings {
		fmt.Fprintln(s.Err, "warning:", w)
	}
	return res.ID, nil
}

func pull(ctx context.Context, s *connect.Session, engine *client.Client, ref string) error {
	auth, err := image.RegistryAuth(s, ref)
	if err != nil {
		return err
	}
	stream, err := engine.ImagePull(ctx, ref, client.ImagePullOptions{RegistryAuth: auth})
	if err != nil {
		return err
	}
	defer stream.Close()
	for m, err := range stream.JSONMessages(ctx) {
		switch {
		case err != nil:
			return fmt.Errorf("pull %s: %w", ref, err)
		case m.Error != nil:
			return fmt.Errorf("pull %s: %s", ref, m.Error.Message)
		case m.Progress == nil && m.ID == "":
			fmt.Fprintln(s.Err, m.Status)
		}
	}
	return nil
}

// attached runs the container in the foreground and ends with its exit code.
func (o *runOptions) attached(ctx context.Context, s *connect.Session, engine *client.Client, id string, detach []byte) error {
	// The container, not this program, decides what an interrupt means.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	conn, err := engine.ContainerAttach(ctx, id, client.ContainerAttachOptions{
		Stream: true, Stdin: o.interactive, Stdout: true, Stderr: true, DetachKeys: o.detachKeys,
	})
	if err != nil {
		return err
	}
	condition := container.WaitConditionNextExit
	if o.remove {
		condition = container.WaitConditionRemoved
	}
	wait := engine.ContainerWait(ctx, id, client.ContainerWaitOptions{Condition: condition})
	if !o.tty && o.sigProxy {
		defer forward(ctx, engine, id)()
	}
	if _, err := engine.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
		conn.Close()
		return startError(s, err)
	}
	err = session{
		s: s, conn: conn.HijackedResponse, tty: o.tty, stdin: o.interactive, detach: detach,
		resize: func(w, h uint) {
			engine.ContainerResize(ctx, id, client.ContainerResizeOptions{Width: w, Height: h})
		},
	}.run(ctx)
	if errors.Is(err, errDetached) {
		s.Exit.Code = 0
		return nil
	}
	if err != nil {
		return err
	}
	select {
	case err := <-wait.Error:
		return err
	case res := <-wait.Result:
		if res.Error != nil {
			return errors.New(res.Error.Message)
		}
		s.Exit.Code = int(res.StatusCode)
		return nil
	}
}

// startError gives the exit code by which shells tell why nothing ran.
func startError(s *connect.Session, err error) error {
	switch {
	case containsAny(err.Error(), "executable file not found", "no such file or directory"):
		s.Exit.Code = 127
	case containsAny(err.Error(), "permission denied", "is a directory"):
		s.Exit.Code = 126
	}
	return err
}
