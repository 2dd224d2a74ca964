// Package compose reads an application from a project directory: a compose
// file and what it refers to, or a lone Dockerfile.
//
// The result is normalized to what the supervisor takes, in the short forms
// that older supervisors understand too: ports as "8080:80", named volumes as
// "data:/data", dependencies as a list where nothing more is asked.
//
// Nothing is dropped in silence. What would change the application's meaning
// is an error that names file, line and key; what merely has no effect on a
// device is in Notices.
//
// The package reads files and the environment it is given, and changes
// nothing but, while Load runs, the process's logrus logger: one Load at a
// time. It neither builds images nor knows a device; see package cli/app.
package compose

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/sirupsen/logrus"

	"github.com/minke-os/minke/internal/errdef"
)

// Options say where a project is.
type Options struct {
	Dir      string
	Files    []string // compose files; none means the usual names in Dir
	Profiles []string
	Name     string   // the project's; the directory's if empty
	Env      []string // for ${VARIABLES}, in the form of os.Environ
}

// A Project is an application, ready to be built and sent to a supervisor.
type Project struct {
	Name     string
	Services []Service // by name
	Networks map[string]map[string]any
	Volumes  map[string]map[string]any
	Notices  []string // keys that have no effect
}

// A Service is one of a project. It has a Build or an Image, or both.
type Service struct {
	Name        string
	Image       string
	Build       *Build
	Built       string // ID of the image that Build gave; "" to take its name. Whoever builds sets it
	Environment map[string]string
	Labels      map[string]string
	Composition map[string]any // the other compose keys
}

// A Build is how a service's image is made.
type Build struct {
	Context    string // an absolute directory
	Dockerfile string // below Context; "" to choose by device
	Target     string
	Args       map[string]string
	Labels     map[string]string
	CacheFrom  []string
	ExtraHosts []string
}

// ErrNoProject is that a directory holds neither compose file nor Dockerfile.
var ErrNoProject = errors.New("no docker-compose.yml and no Dockerfile here")

// Load reads a project.
func Load(ctx context.Context, o Options) (*Project, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	o.Dir = dir
	if len(o.Files) == 0 && !hasComposeFile(dir) {
		return dockerfileOnly(o)
	}
	var warnings bytes.Buffer
	loaded, err := load(ctx, o, &warnings)
	if err != nil {
		return nil, err
	}
	raw, err := loaded.MarshalJSON()
	if err != nil {
		return nil, err
	}
	var doc document
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, err
	}
	n := &normalizer{
		project: &Project{Name: loaded.Name, Networks: map[string]map[string]any{}, Volumes: map[string]map[string]any{}},
		files:   loaded.ComposeFiles, dir: dir,
	}
	for line := range strings.Lines(warnings.String()) {
		n.project.Notices = append(n.project.Notices, strings.TrimSpace(line))
	}
	n.run(doc)
	if len(n.errs) > 0 {
		return nil, errdef.Invalid.Wrap(errors.Join(n.errs...))
	}
	if len(n.project.Services) == 0 {
		return nil, errdef.Invalid.Errorf("%s: no services to run", strings.Join(base(loaded.ComposeFiles), ", "))
	}
	return n.project, nil
}

func base(paths []string) []string {
	var out []string
	for _, p := range paths {
		out = append(out, filepath.Base(p))
	}
	return out
}

// document is compose-go's normalized project.
type document struct {
	Services map[string]map[string]any
	Networks map[string]map[string]any
	Volumes  map[string]map[string]any
	Secrets  map[string]any
	Configs  map[string]any
}

func hasComposeFile(dir string) bool {
	return slices.ContainsFunc(cli.DefaultFileNames, func(name string) bool { return isFile(filepath.Join(dir, name)) })
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}

// load runs compose-go, which says some things only through the process's
// logger, for as long as that takes.
func load(ctx context.Context, o Options, warnings io.Writer) (*types.Project, error) {
	std := logrus.StandardLogger()
	out, formatter := std.Out, std.Formatter
	defer func() { std.SetOutput(out); std.SetFormatter(formatter) }()
	std.SetOutput(warnings)
	std.SetFormatter(plain{})
	opts := []cli.ProjectOptionsFn{
		cli.WithWorkingDirectory(o.Dir), cli.WithEnv(o.Env), cli.WithEnvFiles(), cli.WithDotEnv, cli.WithConfigFileEnv,
		cli.WithDefaultConfigPath, cli.WithProfiles(o.Profiles), cli.WithResolvedPaths(true),
	}
	if o.Name != "" {
		opts = append(opts, cli.WithName(o.Name))
	}
	po, err := cli.NewProjectOptions(o.Files, opts...)
	if err != nil {
		return nil, readable(err, o.Files)
	}
	p, err := po.LoadProject(ctx)
	if err != nil {
		return nil, readable(err, po.ConfigPaths)
	}
	return p, nil
}

// plain prints a message and nothing else.
type plain struct{}

func (plain) Format(e *logrus.Entry) ([]byte, error) { return []byte(e.Message + "\n"), nil }

// dockerfileOnly is a directory that is one service. Such an application is
// usually somebody's first: it may do all that the host can.
func dockerfileOnly(o Options) (*Project, error) {
	if !hasDockerfile(o.Dir) {
		return nil, errdef.NotFound.Errorf("%s: %w; write one, or name the project's directory or file (-f)", o.Dir, ErrNoProject)
	}
	name := o.Name
	if name == "" {
		name = projectName(filepath.Base(o.Dir))
	}
	labels := map[string]string{}
	for _, f := range []string{"kernel-modules", "firmware", "dbus", "supervisor-api", "resin-api"} {
		labels["io.resin.features."+f] = "1"
	}
	return &Project{
		Name: name,
		Services: []Service{{
			Name:        "main",
			Build:       &Build{Context: o.Dir},
			Environment: map[string]string{},
			Labels:      labels,
			Composition: map[string]any{
				"privileged": true, "tty": true, "restart": "always",
				"network_mode": "host", "volumes": []any{"resin-data:/data"},
			},
		}},
		Networks: map[string]map[string]any{},
		Volumes:  map[string]map[string]any{"resin-data": {}},
	}, nil
}

func projectName(dir string) string {
	keep := func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return -1
	}
	if name := strings.TrimLeft(strings.Map(keep, strings.ToLower(dir)), "-_"); name != "" {
		return name
	}
	return "app"
}

func hasDockerfile(dir string) bool {
	entries, err := fs.Glob(os.DirFS(dir), "Dockerfile*")
	return err == nil && len(entries) > 0
}

// FileFor is the name, below a build context, of the Dockerfile for a
// device: the most specific there is.
func (b *Build) FileFor(deviceType, arch string) (string, error) {
	if b.Dockerfile != "" && isFile(filepath.Join(b.Context, b.Dockerfile)) {
		return b.Dockerfile, nil
	}
	if b.Dockerfile != "" && b.Dockerfile != "Dockerfile" {
		return "", errdef.NotFound.Errorf("%s: no such file", filepath.Join(b.Context, b.Dockerfile))
	}
	for _, name := range []string{"Dockerfile." + deviceType, "Dockerfile." + arch, "Dockerfile.template", "Dockerfile"} {
		if isFile(filepath.Join(b.Context, name)) {
			return name, nil
		}
	}
	return "", errdef.NotFound.Errorf("%s: no Dockerfile here", b.Context)
}

// LocalImage is the name under which a service's built image is kept.
func LocalImage(service string) string { return "local_image_" + service + ":latest" }

// The names under which the one locally pushed application runs: tools that
// look for its containers know them.
const (
	localApp    = "1"
	localCommit = "10ca12e1ea5e"
)

// Target is the local target state of a device that runs the project. It is
// built on the device's own (the "local" object of GET /v2/local/target-state),
// of which it keeps all but the applications. A nil project runs nothing.
// Force replaces services that hold an update lock.
func Target(p *Project, local map[string]any, force bool) ([]byte, error) {
	out := maps.Clone(local)
	if out == nil {
		out = map[string]any{}
	}
	apps := map[string]any{}
	if p != nil {
		apps[localApp] = p.app()
	}
	out["apps"] = apps
	body := map[string]any{"local": out}
	if force {
		body["force"] = true
	}
	return json.Marshal(body)
}

func (p *Project) app() map[string]any {
	services := map[string]any{}
	for i, s := range p.Services {
		body := maps.Clone(s.Composition)
		body["serviceName"], body["serviceId"], body["imageId"] = s.Name, i+1, i+1
		body["environment"], body["labels"], body["running"] = s.Environment, s.Labels, true
		body["image"] = s.Image
		if s.Build != nil {
			body["image"] = cmp.Or(s.Built, LocalImage(s.Name))
		}
		services[fmt.Sprint(i+1)] = body
	}
	return map[string]any{
		"name": p.Name, "commit": localCommit, "releaseId": "1",
		"services": services, "volumes": p.Volumes, "networks": p.Networks,
	}
}
