package image

import (
	"cmp"
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
	"text/tabwriter"

	"github.com/distribution/reference"
	"github.com/moby/moby/client"
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
	c.AddCommand(create, inspectDeltaCommand(s))
	return c
}

func inspectDeltaCommand(s *connect.Session) *cobra.Command {
	template := ""
	c := &cobra.Command{
		Use: "inspect FILE|IMAGE", Short: "Show what costs the bytes of a delta",
		Long: "Show what costs the bytes of a delta in FILE, or of all deltas that a registry has of IMAGE.\n\n" +
			"Names of files that are the base's are known where the engine has the base.",
		Example: "  minke delta inspect update.tar\n  minke delta inspect --format json registry.example/web:1.1",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return inspectDelta(cmd.Context(), s, args[0], template)
		},
	}
	c.Flags().StringVar(&template, "format", "", "print through a Go `template`, or as \"json\"")
	return c
}

func inspectDelta(ctx context.Context, s *connect.Session, name, template string) error {
	engine, err := s.Engine()
	if err != nil {
		return err
	}
	defer engine.Close()
	var body io.Reader
	method, path, auth := http.MethodGet, "/minke/delta/report?"+url.Values{"image": {name}}.Encode(), ""
	f, err := os.Open(name)
	if err == nil {
		defer f.Close()
		method, path, body = http.MethodPost, "/minke/delta/report", f
	} else if auth, err = RegistryAuth(s, name); err != nil {
		return fmt.Errorf("%s is neither a file nor an image: %w", name, err)
	}
	resp, err := askDelta(ctx, engine, method, path, auth, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var all []deltaReport
	if err := json.NewDecoder(resp.Body).Decode(&all); err != nil {
		return fmt.Errorf("the engine's answer: %w", err)
	}
	if template != "" {
		return format.Value(s.Out, template, all)
	}
	for _, d := range all {
		if err := report(s.Out, d); err != nil {
			return err
		}
	}
	return nil
}

// askDelta asks the engine for what only minke's has.
func askDelta(ctx context.Context, engine *client.Client, method, path, auth string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, connect.Base+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-Registry-Auth", auth)
	resp, err := connect.HTTP(engine).Do(req)
	if err != nil || resp.StatusCode == http.StatusOK {
		return resp, err
	}
	defer resp.Body.Close()
	var refusal struct{ Message string }
	if json.NewDecoder(resp.Body).Decode(&refusal); refusal.Message == "page not found" || refusal.Message == "" {
		return nil, errors.New("this engine knows no deltas: it is not minke's, or an old one")
	}
	return nil, errors.New(refusal.Message)
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
		if auth, err = RegistryAuth(s, target); err != nil {
			return err
		}
	}
	resp, err := askDelta(ctx, engine, method, "/minke/delta?"+q.Encode(), auth, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
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

// A deltaReport is in "aux" of POST /minke/delta, and what GET and POST
// /minke/delta/report answer with a list of. Figures are bytes.
type deltaReport struct {
	Base   string
	Size   int64
	Layers []struct {
		Layer       string
		Size, Table int64
		deltaCost
		Count int
		Files []struct {
			Path, Digest, Base string
			Opened             bool
			Size, Cost         int64
			deltaCost
		}
	}
}

type deltaCost struct{ Whole, Operations, Changes, Added int64 }

// shownFiles is how many files of a layer a person wants to see.
const shownFiles = 8

func showDelta(w io.Writer, r io.Reader) error {
	return tellSteps(r, func(line string) { fmt.Fprintln(w, line) }, func(aux json.RawMessage) error {
		var d deltaReport
		if json.Unmarshal(aux, &d) != nil || d.Layers == nil {
			return nil // what a registry says of a push
		}
		return report(w, d)
	})
}

// report prints a line for each layer, then its most costly files.
func report(w io.Writer, d deltaReport) error {
	fmt.Fprintf(w, "Delta of %s from %s\n", format.Size(d.Size), cmp.Or(format.ID(d.Base, false), "an unknown image"))
	t := tabwriter.NewWriter(w, 0, 1, 3, ' ', 0)
	fmt.Fprintln(t, "LAYER\tSIZE\tTABLE OF FILES\tWHOLE FILES\tPATCHES: COPIES\tCHANGES\tADDED")
	for _, l := range d.Layers {
		fmt.Fprint(t, format.ID(l.Layer, false))
		for _, n := range []int64{l.Size, l.Table, l.Whole, l.Operations, l.Changes, l.Added} {
			fmt.Fprint(t, "\t", format.Size(n))
		}
		fmt.Fprintln(t)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, l := range d.Layers {
		if len(l.Files) == 0 {
			continue
		}
		fmt.Fprintf(w, "\nLayer %s has %d files that are new; what costs most:\n", format.ID(l.Layer, false), l.Count)
		fmt.Fprintln(t, "COST\tSIZE\tFILE\tMADE FROM")
		for _, f := range l.Files[:min(len(l.Files), shownFiles)] {
			from := f.Base
			switch {
			case from == "":
				from = "nothing: sent whole"
			case from == f.Path:
				from = "the same before"
			}
			if f.Opened {
				from += ", opened"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", format.Size(f.Cost), format.Size(f.Size), cmp.Or(f.Path, f.Digest), from)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// RegistryAuth is what "docker login" keeps for an image's registry, in the form
// of X-Registry-Auth. Credential helpers are not asked.
func RegistryAuth(s *connect.Session, image string) (string, error) {
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
