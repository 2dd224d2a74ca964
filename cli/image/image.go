// Package image has the docker-style commands for images: build, images,
// history, pull, push, load, save, rmi and tag. They talk to the engine.
package image

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/minke-os/minke/cli/connect"
	"github.com/minke-os/minke/cli/format"
)

// Commands are the package's.
func Commands(s *connect.Session) []*cobra.Command {
	return []*cobra.Command{
		buildCommand(s), imagesCommand(s), historyCommand(s), pullCommand(s), pushCommand(s),
		loadCommand(s), saveCommand(s), rmiCommand(s), tagCommand(s),
	}
}

const imagesDefault = `table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}`

var imagesTitles = format.Titles{
	"Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", "ID": "IMAGE ID",
	"CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "Size": "SIZE",
}

type imagesOptions struct {
	all, quiet, noTrunc bool
	filters             []string
	format              string
}

func imagesCommand(s *connect.Session) *cobra.Command {
	o := imagesOptions{}
	c := &cobra.Command{
		Use: "images [REPOSITORY[:TAG]]", Short: "List images",
		Example: "  minke images\n  minke images --format \"{{.Repository}}:{{.Tag}} {{.Size}}\"",
		Args:    cobra.MaximumNArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), s, args) },
	}
	f := c.Flags()
	f.BoolVarP(&o.all, "all", "a", false, "show intermediate images too")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print IDs only")
	f.BoolVar(&o.noTrunc, "no-trunc", false, "do not shorten columns")
	f.StringArrayVarP(&o.filters, "filter", "f", nil, "show only images with `key=value`")
	f.StringVar(&o.format, "format", "", "print through a Go `template`")
	return c
}

func (o imagesOptions) run(ctx context.Context, s *connect.Session, args []string) error {
	engine, err := s.Engine()
	if err != nil {
		return err
	}
	defer engine.Close()
	filters := client.Filters{}
	for _, kv := range o.filters {
		k, v, ok := strings.Cut(kv, "=")
		if !ok {
			return fmt.Errorf("--filter %q: want key=value, such as dangling=true", kv)
		}
		filters.Add(k, v)
	}
	if len(args) > 0 {
		filters.Add("reference", args[0])
	}
	list, err := engine.ImageList(ctx, client.ImageListOptions{All: o.all, Filters: filters})
	if err != nil {
		return err
	}
	rows := []format.Row{}
	for _, i := range list.Items {
		id := i.ID
		if !o.noTrunc {
			id = format.ID(id, false)
		}
		created := time.Unix(i.Created, 0)
		row := format.Row{
			"Repository": "<none>", "Tag": "<none>", "Digest": digest(i.RepoDigests), "ID": id,
			"CreatedSince": format.Ago(created), "CreatedAt": created.String(), "Size": format.Size(i.Size),
		}
		tags := i.RepoTags
		if len(tags) == 0 {
			tags = []string{"<none>:<none>"}
		}
		for _, t := range tags {
			colon := strings.LastIndex(t, ":")
			r := format.Row{}
			for k, v := range row {
				r[k] = v
			}
			r["Repository"], r["Tag"] = t[:colon], t[colon+1:]
			rows = append(rows, r)
		}
	}
	if o.quiet && o.format == "" {
		o.format = "{{.ID}}"
	}
	return format.Rows(s.Out, o.format, imagesDefault, imagesTitles, rows)
}

func digest(list []string) string {
	if len(list) == 0 {
		return "<none>"
	}
	_, d, _ := strings.Cut(list[0], "@")
	return d
}

const historyDefault = `table {{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}`

var historyTitles = format.Titles{
	"ID": "IMAGE", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "CreatedBy": "CREATED BY", "Size": "SIZE", "Comment": "COMMENT",
}

type historyOptions struct {
	human, quiet, noTrunc bool
	format                string
}

func historyCommand(s *connect.Session) *cobra.Command {
	o := historyOptions{}
	c := &cobra.Command{
		Use: "history IMAGE", Short: "Show how an image was made",
		Example: "  minke history local_image_web --format \"table {{.Size}}\\t{{.CreatedBy}}\"",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), s, args[0]) },
	}
	f := c.Flags()
	f.BoolVarP(&o.human, "human", "H", true, "print sizes and times for people")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print IDs only")
	f.BoolVar(&o.noTrunc, "no-trunc", false, "do not shorten columns")
	f.StringVar(&o.format, "format", "", "print through a Go `template`")
	return c
}

// createdByWidth is how much of a command a table shows.
const createdByWidth = 45

func (o historyOptions) run(ctx context.Context, s *connect.Session, ref string) error {
	engine, err := s.Engine()
	if err != nil {
		return err
	}
	defer engine.Close()
	res, err := engine.ImageHistory(ctx, ref)
	if err != nil {
		return err
	}
	rows := []format.Row{}
	for _, h := range res.Items {
		created := time.Unix(h.Created, 0)
		by := strings.ReplaceAll(h.CreatedBy, "\t", " ")
		if !o.noTrunc {
			by = format.Ellipsis(by, createdByWidth)
		}
		row := format.Row{
			"ID": format.ID(h.ID, o.noTrunc), "CreatedSince": format.Ago(created), "CreatedAt": created.Format(time.RFC3339),
			"CreatedBy": by, "Size": format.Size(h.Size), "Comment": h.Comment,
		}
		if !o.human {
			row["CreatedSince"], row["Size"] = row["CreatedAt"], fmt.Sprint(h.Size)
		}
		rows = append(rows, row)
	}
	if o.quiet && o.format == "" {
		o.format = "{{.ID}}"
	}
	return format.Rows(s.Out, o.format, historyDefault, historyTitles, rows)
}

func pullCommand(s *connect.Session) *cobra.Command {
	return &cobra.Command{
		Use: "pull IMAGE", Short: "Download an image", Args: cobra.ExactArgs(1), Example: "  minke pull alpine:3.20",
		RunE: func(cmd *cobra.Command, args []string) error {
			engine, err := s.Engine()
			if err != nil {
				return err
			}
			defer engine.Close()
			return Pull(cmd.Context(), s, engine, args[0], func(line string) { fmt.Fprintln(s.Out, line) })
		},
	}
}

// Pull downloads an image and tells each step of it, one line a call.
func Pull(ctx context.Context, s *connect.Session, engine *client.Client, ref string, tell func(line string)) error {
	auth, err := RegistryAuth(s, ref)
	if err != nil {
		return err
	}
	stream, err := engine.ImagePull(ctx, ref, client.ImagePullOptions{RegistryAuth: auth})
	if err != nil {
		return err
	}
	defer stream.Close()
	return tellSteps(stream, tell, nil)
}

func rmiCommand(s *connect.Session) *cobra.Command {
	o := client.ImageRemoveOptions{PruneChildren: true}
	c := &cobra.Command{
		Use: "rmi IMAGE...", Short: "Remove images", Args: cobra.MinimumNArgs(1), Example: "  minke rmi alpine:3.20",
		RunE: func(cmd *cobra.Command, refs []string) error {
			engine, err := s.Engine()
			if err != nil {
				return err
			}
			defer engine.Close()
			var errs []error
			for _, ref := range refs {
				res, err := engine.ImageRemove(cmd.Context(), ref, o)
				errs = append(errs, err)
				for _, r := range res.Items {
					if r.Untagged != "" {
						fmt.Fprintln(s.Out, "Untagged:", r.Untagged)
					}
					if r.Deleted != "" {
						fmt.Fprintln(s.Out, "Deleted:", r.Deleted)
					}
				}
			}
			return errors.Join(errs...)
		},
	}
	c.Flags().BoolVarP(&o.Force, "force", "f", false, "remove images that stopped containers use")
	return c
}

func tagCommand(s *connect.Session) *cobra.Command {
	return &cobra.Command{
		Use: "tag IMAGE NAME", Short: "Give an image another name", Args: cobra.ExactArgs(2), Example: "  minke tag local_image_web web:1.0",
		RunE: func(cmd *cobra.Command, args []string) error {
			engine, err := s.Engine()
			if err != nil {
				return err
			}
			defer engine.Close()
			_, err = engine.ImageTag(cmd.Context(), client.ImageTagOptions{Source: args[0], Target: args[1]})
			return err
		},
	}
}
