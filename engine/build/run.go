package build

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/minke-os/minke/engine/build/dockerfile"
	"github.com/minke-os/minke/internal/errdef"
)

// run is RUN.
func (st *stage) run(ctx context.Context, c *dockerfile.Run) error {
	if c.Insecure {
		return errdef.Unsupported.Errorf("RUN --security=insecure is not supported: a build gets no privileges; leave it out")
	}
	if len(c.Devices) > 0 {
		return errdef.Unsupported.Errorf("RUN --device is not supported: a build gets no devices; leave it out")
	}
	if st.image == "" {
		return errdef.Invalid.Errorf("no source image provided with `FROM scratch`: RUN has nothing to run; COPY or ADD a root file system first")
	}
	cmd := withShell(st.config.Config, withHeredocs(c.Command))
	env := st.args.env(st.config.Config.Env)
	mounts, note, err := st.mounts(ctx, c)
	if err != nil {
		return err
	}
	createdBy := strings.Join(withArgs(env, cmd), " ") + note
	if st.hit(ctx, createdBy) {
		return nil
	}
	config := st.config.Config
	config.Env = slices.Concat(config.Env, env, st.args.proxies(config.Env))
	config.Cmd, config.Entrypoint, config.Healthcheck = nil, nil, nil
	host := st.o.Host
	if c.Network != "default" {
		host.NetworkMode = c.Network
	}
	var container string
	res, err := st.Runner.Run(ctx, RunSpec{
		Parent: st.chain, Image: st.image, Config: config, Cmd: cmd, Host: host, Mounts: mounts,
		Started: func(id string) {
			container = id[:min(12, len(id))]
			st.printf(" ---> Running in %s\n", container)
		},
		Stdout: st.out.Stdout, Stderr: st.out.Stderr,
	})
	if err != nil {
		return err
	}
	if st.o.Remove && container != "" {
		st.printf("Removing intermediate container %s\n", container)
	}
	if res.ExitCode != 0 {
		return &ExitError{Command: strings.Join(cmd, " "), Code: res.ExitCode}
	}
	if res.Layer.Empty() {
		return st.commit(ctx, createdBy, nil)
	}
	return st.commit(ctx, createdBy, &res.Layer)
}

// withArgs puts build arguments before a command in the history, as
// "|1 VERSION=3 /bin/sh -c make": the command depends on them.
func withArgs(env, cmd []string) []string {
	if len(env) == 0 {
		return cmd
	}
	return slices.Concat([]string{fmt.Sprintf("|%d", len(env))}, env, cmd)
}

// withHeredocs gives the shell its here-documents back, which the parser has
// taken out of the command line.
func withHeredocs(c dockerfile.Command) dockerfile.Command {
	if len(c.Files) == 0 || !c.Shell || len(c.Line) == 0 {
		return c
	}
	first := c.Files[0]
	if alone := strings.TrimPrefix(strings.TrimPrefix(c.Line[0], "<<"), "-"); len(c.Files) == 1 && strings.Trim(alone, `"'`) == first.Name {
		c.Line = []string{script(first.Content())}
		return c
	}
	text := c.Line[0]
	for _, f := range c.Files {
		text += "\n" + f.Text + f.Name
	}
	c.Line = []string{text}
	return c
}

// script is a here-document that is the whole command. One that names its
// interpreter is put into a file, as the kernel wants it.
func script(text string) string {
	if !strings.HasPrefix(text, "#!") {
		return text
	}
	quoted := "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
	return `f=$(mktemp) && printf %s ` + quoted + ` >"$f" && chmod +x "$f" && "$f"; r=$?; rm -f "$f"; exit $r`
}
