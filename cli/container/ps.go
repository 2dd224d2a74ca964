package container

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/minke-os/minke/cli/connect"
	"github.com/minke-os/minke/cli/format"
)

const psDefault = `table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}`

var psTitles = format.Titles{
	"ID": "CONTAINER ID", "Image": "IMAGE", "Command": "COMMAND", "RunningFor": "CREATED", "CreatedAt": "CREATED AT",
	"Status": "STATUS", "State": "STATE", "Ports": "PORTS", "Names": "NAMES", "Size": "SIZE", "Labels": "LABELS",
	"Mounts": "MOUNTS", "LocalVolumes": "LOCAL VOLUMES", "Networks": "NETWORKS",
}

type psOptions struct {
	all, quiet, noTrunc, size, latest bool
	last                              int
	filters                           []string
	format                            string
}

func psCommand(s *connect.Session) *cobra.Command {
	o := psOptions{}
	c := &cobra.Command{
		Use:     "ps",
		Short:   "List containers",
		Aliases: []string{"ls"},
		Example: "  minke ps -a\n  minke ps --format \"table {{.Names}}\\t{{.Size}}\\t{{.Image}}\"",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), s) },
	}
	f := c.Flags()
	f.BoolVarP(&o.all, "all", "a", false, "show stopped containers too")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print IDs only")
	f.BoolVar(&o.noTrunc, "no-trunc", false, "do not shorten columns")
	f.BoolVarP(&o.size, "size", "s", false, "show how much each container has written")
	f.BoolVarP(&o.latest, "latest", "l", false, "show the container created last")
	f.IntVarP(&o.last, "last", "n", -1, "show the `n` containers created last")
	f.StringArrayVarP(&o.filters, "filter", "f", nil, "show only containers with `key=value`")
	f.StringVar(&o.format, "format", "", "print through a Go `template`, a table if it begins with \"table\"")
	return c
}

func (o psOptions) run(ctx context.Context, s *connect.Session) error {
	engine, err := s.Engine()
	if err != nil {
		return err
	}
	defer engine.Close()
	opts := client.ContainerListOptions{All: o.all, Size: o.size || format.Uses(o.format, "Size"), Filters: client.Filters{}}
	if o.latest {
		o.last = 1
	}
	if o.last > 0 {
		opts.Limit, opts.All = o.last, true
	}
	if err := addFilters(opts.Filters, o.filters); err != nil {
		return err
	}
	list, err := engine.ContainerList(ctx, opts)
	if err != nil {
		return err
	}
	rows := make([]format.Row, 0, len(list.Items))
	for _, c := range list.Items {
		rows = append(rows, row(c, o.noTrunc))
	}
	if o.quiet && o.format == "" {
		o.format = "{{.ID}}"
	}
	def := psDefault
	if o.size {
		def += `\t{{.Size}}`
	}
	return format.Rows(s.Out, o.format, def, psTitles, rows)
}

func addFilters(f client.Filters, list []string) error {
	for _, kv := range list {
		k, v, ok := strings.Cut(kv, "=")
		if !ok {
			return fmt.Errorf("--filter %q: want key=value, such as status=exited", kv)
		}
		f.Add(k, v)
	}
	return nil
}

func row(c container.Summary, full bool) format.Row {
	created := time.Unix(c.Created, 0)
	command := strconv.Quote(c.Command)
	if !full {
		command = strconv.Quote(format.Ellipsis(c.Command, 20))
	}
	r := format.Row{
		"ID": format.ID(c.ID, full), "Image": imageName(c, full), "Command": command,
		"RunningFor": format.Ago(created), "CreatedAt": created.String(),
		"Status": c.Status, "State": string(c.State), "Ports": ports(c.Ports),
		"Names": names(c.Names), "Size": size(c), "Labels": labels(c.Labels),
	}
	var mounts, networks []string
	volumes := 0
	for _, m := range c.Mounts {
		name := m.Source
		if m.Name != "" {
			name = m.Name
			volumes++
		}
		if !full {
			name = format.Ellipsis(name, 15)
		}
		mounts = append(mounts, name)
	}
	if c.NetworkSettings != nil {
		for name := range c.NetworkSettings.Networks {
			networks = append(networks, name)
		}
	}
	slices.Sort(networks)
	r["Mounts"], r["Networks"], r["LocalVolumes"] = strings.Join(mounts, ","), strings.Join(networks, ","), strconv.Itoa(volumes)
	return r
}

// names are without the leading slash, and without those of links, which have
// another one.
func names(list []string) string {
	var out []string
	for _, n := range list {
		if n = strings.TrimPrefix(n, "/"); !strings.Contains(n, "/") {
			out = append(out, n)
		}
	}
	return strings.Join(out, ",")
}

// imageName is the ID, shortened, where a container was made from an ID.
func imageName(c container.Summary, full bool) string {
	if c.Image == "" {
		return "<no image>"
	}
	if !full && (strings.HasPrefix(c.Image, "sha256:") || format.ID(c.Image, false) == format.ID(c.ImageID, false)) {
		return format.ID(c.Image, false)
	}
	name, _, digest := strings.Cut(c.Image, "@sha256:")
	if digest && !full {
		return name
	}
	return c.Image
}

func size(c container.Summary) string {
	if c.SizeRootFs == 0 {
		return format.Size(c.SizeRw)
	}
	return fmt.Sprintf("%s (virtual %s)", format.Size(c.SizeRw), format.Size(c.SizeRootFs))
}

func labels(m map[string]string) string {
	var out []string
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

// ports joins what is consecutive, "0.0.0.0:80->80/tcp, 8000-8002/tcp". Ports
// that are published under another number come last, one by one.
func ports(list []container.PortSummary) string {
	type group struct{ first, last uint16 }
	var out, moved, order []string
	open := map[string]*group{}
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b container.PortSummary) int {
		if a.PrivatePort != b.PrivatePort {
			return int(a.PrivatePort) - int(b.PrivatePort)
		}
		if c := a.IP.Compare(b.IP); c != 0 {
			return c
		}
		return int(a.PublicPort) - int(b.PublicPort)
	})
	show := func(key string, g *group) string {
		ip, proto, _ := strings.Cut(key, "/")
		s := strconv.Itoa(int(g.first))
		if g.last != g.first {
			s += "-" + strconv.Itoa(int(g.last))
		}
		if ip != "" {
			s = ip + ":" + s + "->" + s
		}
		return s + "/" + proto
	}
	for _, p := range list {
		key := "/" + p.Type
		if p.PublicPort != 0 {
			key = host(p.IP) + "/" + p.Type
		}
		if p.PublicPort != 0 && p.PublicPort != p.PrivatePort {
			moved = append(moved, fmt.Sprintf("%s:%d->%d/%s", host(p.IP), p.PublicPort, p.PrivatePort, p.Type))
			continue
		}
		g := open[key]
		switch {
		case g == nil:
			order = append(order, key)
			open[key] = &group{p.PrivatePort, p.PrivatePort}
		case p.PrivatePort == g.last+1:
			g.last++
		case p.PrivatePort != g.last:
			out = append(out, show(key, g))
			*g = group{p.PrivatePort, p.PrivatePort}
		}
	}
	for _, key := range order {
		out = append(out, show(key, open[key]))
	}
	return strings.Join(append(out, moved...), ", ")
}

func host(ip netip.Addr) string {
	switch {
	case !ip.IsValid():
		return "0.0.0.0"
	case ip.Is6():
		return "[" + ip.String() + "]"
	}
	return ip.String()
}
