package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/minke-os/minke/cli/connect"
)

func loadCommand(s *connect.Session) *cobra.Command {
	input := ""
	c := &cobra.Command{
		Use: "load", Short: "Take images, or a delta, from an archive", Args: cobra.NoArgs,
		Example: "  minke load -i update.tar\n  zstdcat update.tar.zst | minke load",
		RunE: func(cmd *cobra.Command, _ []string) error {
			from := s.In
			if input != "" {
				f, err := os.Open(input)
				if err != nil {
					return err
				}
				defer f.Close()
				from = f
			} else if s.InputIsTerminal() {
				return errors.New("give an archive: minke load -i FILE, or minke load < FILE")
			}
			engine, err := s.Engine()
			if err != nil {
				return err
			}
			defer engine.Close()
			answer, err := engine.ImageLoad(cmd.Context(), from, client.ImageLoadWithQuiet(true))
			if err != nil {
				return err
			}
			defer answer.Close()
			return tellSteps(answer, func(line string) { fmt.Fprintln(s.Out, line) }, nil)
		},
	}
	c.Flags().StringVarP(&input, "input", "i", "", "read a `file`, not the standard input")
	return c
}

func saveCommand(s *connect.Session) *cobra.Command {
	output := ""
	c := &cobra.Command{
		Use: "save IMAGE...", Short: "Write images to an archive", Args: cobra.MinimumNArgs(1),
		Example: "  minke save -o web.tar web:1 web:2",
		RunE: func(cmd *cobra.Command, images []string) error {
			if output == "" && s.OutputIsTerminal() {
				return errors.New("an archive is nothing for a screen: use -o FILE, or > FILE")
			}
			engine, err := s.Engine()
			if err != nil {
				return err
			}
			defer engine.Close()
			archive, err := engine.ImageSave(cmd.Context(), images)
			if err != nil {
				return err
			}
			defer archive.Close()
			if output != "" {
				return save(archive, output)
			}
			_, err = io.Copy(s.Out, archive)
			return err
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", "write a `file`, which is there only when it is complete")
	return c
}

func pushCommand(s *connect.Session) *cobra.Command {
	return &cobra.Command{
		Use: "push IMAGE", Short: "Upload an image", Args: cobra.ExactArgs(1), Example: "  minke push registry.example/web:1",
		RunE: func(cmd *cobra.Command, args []string) error {
			return push(cmd.Context(), s, args[0])
		},
	}
}

func push(ctx context.Context, s *connect.Session, image string) error {
	auth, err := RegistryAuth(s, image)
	if err != nil {
		return err
	}
	engine, err := s.Engine()
	if err != nil {
		return err
	}
	defer engine.Close()
	stream, err := engine.ImagePush(ctx, image, client.ImagePushOptions{RegistryAuth: auth})
	if err != nil {
		return err
	}
	defer stream.Close()
	return tellSteps(stream, func(line string) { fmt.Fprintln(s.Out, line) }, nil)
}

// tellSteps tells each step of what an engine does, one line a call, but for
// progress within a step. aux, if not nil, gets what is said besides. The error
// is the engine's, the stream's, or aux's.
func tellSteps(r io.Reader, tell func(line string), aux func(json.RawMessage) error) error {
	for dec := json.NewDecoder(r); ; {
		var m jsonstream.Message
		if err := dec.Decode(&m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		switch {
		case m.Error != nil:
			return errors.New(m.Error.Message)
		case m.Aux != nil && aux != nil:
			if err := aux(*m.Aux); err != nil {
				return err
			}
		case m.Stream != "":
			tell(strings.TrimSuffix(m.Stream, "\n"))
		case m.Progress != nil && m.Progress.Total > 0: // too much for a log
		case m.ID != "":
			tell(m.ID + ": " + m.Status)
		case m.Status != "":
			tell(m.Status)
		}
	}
}
