package image

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/spf13/cobra"

	"github.com/minke-os/minke/cli/connect"
	"github.com/minke-os/minke/cli/format"
)

// DeltaCommand is what docker has no command for.
func DeltaCommand(s *connect.Session) *cobra.Command {
	c := &cobra.Command{Use: "delta COMMAND", Short: "Make updates small"}
	o := deltaOptions{}
	create := &cobra.Command{
		Use: "create OLD NEW", Short: "Make a delta between two images",
		Long: "Make a delta that turns image OLD into image NEW.\n\n" +
			"With --push it goes to the registry that NEW is in, beside it: a device that has OLD, or another\n" +
			"image with the same files, and pulls NEW then fetches the delta. With -o it becomes a file for\n" +
			"\"load\". With neither, it is only told how large it would be, and which files cost most.",
		Example: "  minke delta create --push web:1.0 registry.example/web:1.1\n  minke delta create -o update.tar web:1.0 web:1.1",
		Args:    cobra.ExactArgs(2),
		RunE:    func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), s, args[0], args[1]) },
	}
	f := create.Flags()
	f.StringVarP(&o.output, "output", "o", "", "write it to a `file`")
	f.BoolVar(&o.push, "push", false, "push it to NEW's registry")
	f.StringVar(&o.memory, "memory", "", "use about this much memory (default 1g)")
	c.AddCommand(create)
	return c
}

type deltaOptions struct {
	output, memory string
	push           bool
}

func (o deltaOptions) run(ctx context.Context, s *connect.Session, base, target string) error {
	if o.output != "" && o.push {
		return errors.New("-o and --push are two things: make the delta twice")
	}
	engine, err := s.Engine()
	if err != nil {
		return err
	}
	defer engine.Close()
	q := url.Values{"base": {base}, "target": {target}, "memory": {o.memory}}
	method := http.MethodPost
	if o.output != "" {
		method = http.MethodGet
	}
	auth := ""
	if o.push {
		q.Set("push", target)
		if auth, err = registryAuth(s, target); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, connect.Base+"/minke/delta?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("X-Registry-Auth", auth)
	resp, err := connect.HTTP(engine).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var refusal struct{ Message string }
		if json.NewDecoder(resp.Body).Decode(&refusal); refusal.Message == "page not found" || refusal.Message == "" {
			return errors.New("this engine makes no deltas: it is not minke's, or an old one")
		}
		return errors.New(refusal.Message)
	}
	if o.output != "" {
		return save(resp.Body, o.output)
	}
	return showDelta(s.Out, resp.Body)
}

// save writes a file that is there only when it is complete.
func save(r io.Reader, path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".minke-delta-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = io.Copy(f, r)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Chmod(f.Name(), 0o644); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// A deltaReport is in "aux" of POST /minke/delta.
type deltaReport struct {
	Size   int64
	Layers []struct {
		Layer          string
		Size, Skeleton int64
		Files          []struct {
			Path, Base string
			Size, Cost int64
		}
	}
}

// shownFiles is how many files of a layer a person wants to see.
const shownFiles = 8

func showDelta(w io.Writer, r io.Reader) error {
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
		case m.Aux != nil:
			var d deltaReport
			if json.Unmarshal(*m.Aux, &d) == nil && d.Layers != nil {
				report(w, d)
			}
		case m.Progress != nil && m.Progress.Total > 0: // too much for a log
		case m.ID != "":
			fmt.Fprintln(w, m.ID+": "+m.Status)
		case m.Status != "":
			fmt.Fprintln(w, m.Status)
		}
	}
}

func report(w io.Writer, d deltaReport) {
	fmt.Fprintf(w, "Delta: %s in %d layers\n", format.Size(d.Size), len(d.Layers))
	for _, l := range d.Layers {
		fmt.Fprintf(w, "  %s  %s, of which names and times of files %s\n", format.ID(l.Layer, false), format.Size(l.Size), format.Size(l.Skeleton))
		for i, f := range l.Files {
			if i == shownFiles {
				break
			}
			how := "new"
			switch f.Base {
			case "":
			case f.Path:
				how = "changed"
			default:
				how = "from " + f.Base
			}
			fmt.Fprintf(w, "    %9s of %9s  %s (%s)\n", format.Size(f.Cost), format.Size(f.Size), f.Path, how)
		}
	}
}

// registryAuth is what "docker login" keeps for an image's registry, in the form
// of X-Registry-Auth. Credential helpers are not asked.
func registryAuth(s *connect.Session, image string) (string, error) {
	ref, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return "", err
	}
	dir := s.Getenv("DOCKER_CONFIG")
	if dir == "" {
		dir = filepath.Join(s.Getenv("HOME"), ".docker")
	}
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var conf struct {
		Auths map[string]json.RawMessage `json:"auths"`
	}
	if err := json.Unmarshal(data, &conf); err != nil {
		return "", fmt.Errorf("%s: %w", filepath.Join(dir, "config.json"), err)
	}
	server := reference.Domain(ref)
	if server == "docker.io" {
		server = "https://index.docker.io/v1/"
	}
	return base64.URLEncoding.EncodeToString(conf.Auths[server]), nil
}
