package build

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/shell"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"github.com/minke-os/minke/engine/build/dockerfile"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/signal"
)

// Change applies the instructions of "docker commit --change" and "docker
// import --change" to a configuration.
func Change(config dockerspec.DockerOCIImageConfig, lines []string) (dockerspec.DockerOCIImageConfig, error) {
	img := dockerspec.DockerOCIImage{Config: config}
	if len(lines) == 0 {
		return config, nil
	}
	list, escape, err := dockerfile.Instructions(strings.Join(lines, "\n"))
	if err != nil {
		return config, errdef.Invalid.Wrap(err)
	}
	lex := shell.NewLex(escape)
	for _, c := range list {
		env := shell.EnvsFromSlice(img.Config.Env)
		if e, ok := c.(dockerfile.Expandable); ok {
			err := e.Expand(func(word string) (string, error) {
				out, _, err := lex.ProcessWord(word, env)
				return out, err
			})
			if err != nil {
				return config, errdef.Invalid.Wrap(err)
			}
		}
		words := func(word string) ([]string, error) { return lex.ProcessWords(word, env) }
		if err := changeOnly(&img, c, words); err != nil {
			return config, err
		}
	}
	return img.Config, nil
}

// changeOnly leaves out what needs files.
func changeOnly(img *dockerspec.DockerOCIImage, c dockerfile.Instruction, words func(string) ([]string, error)) error {
	switch c := c.(type) {
	case *dockerfile.Workdir:
		img.Config.WorkingDir = joined(img.Config.WorkingDir, c.Path)
		return nil
	case *dockerfile.Run, *dockerfile.Copy, *dockerfile.Add, *dockerfile.Arg:
		return errdef.Invalid.Errorf("%s is not a valid change command", strings.ToUpper(c.Name()))
	}
	_, err := change(img, c, words, false)
	return err
}

// change applies an instruction that has to do with the configuration alone
// and gives its history line. Its single words are expanded already; words
// expands those that may become several.
func change(img *dockerspec.DockerOCIImage, c dockerfile.Instruction, words func(string) ([]string, error), cmdSet bool) (string, error) {
	config := &img.Config
	switch c := c.(type) {
	case *dockerfile.Env:
		comment := "ENV"
		for _, kv := range c.Vars {
			if kv.Key == "" {
				return "", errdef.Invalid.Errorf("ENV names can not be blank")
			}
			config.Env = setEnv(config.Env, kv.Key, kv.Value)
			comment += " " + kv.String()
		}
		return comment, nil
	case *dockerfile.Label:
		comment := "LABEL"
		labels := cloned(config.Labels)
		for _, kv := range c.Labels {
			if kv.Key == "" {
				return "", errdef.Invalid.Errorf("LABEL names can not be blank")
			}
			labels[kv.Key] = kv.Value
			comment += " " + kv.String()
		}
		config.Labels = labels
		return comment, nil
	case *dockerfile.Maintainer:
		img.Author = c.Maintainer
		return "MAINTAINER " + c.Maintainer, nil
	case *dockerfile.Cmd:
		config.Cmd = withShell(*config, c.Command)
		return fmt.Sprintf("CMD %q", config.Cmd), nil
	case *dockerfile.Entrypoint:
		config.Entrypoint = withShell(*config, c.Command)
		if !cmdSet {
			config.Cmd = nil // the base's arguments are for the base's program
		}
		return fmt.Sprintf("ENTRYPOINT %q", config.Entrypoint), nil
	case *dockerfile.User:
		config.User = c.User
		return "USER " + c.User, nil
	case *dockerfile.StopSignal:
		if _, err := signal.Parse(c.Signal); err != nil {
			return "", err
		}
		config.StopSignal = c.Signal
		return "STOPSIGNAL " + c.Signal, nil
	case *dockerfile.Shell:
		config.Shell = c.Shell
		return fmt.Sprintf("SHELL %v", c.Shell), nil
	case *dockerfile.Healthcheck:
		config.Healthcheck = c.Health
		h := c.Health
		return fmt.Sprintf("HEALTHCHECK &{%q %q %q %q %d}", h.Test, h.Interval.String(), h.Timeout.String(), h.StartPeriod.String(), h.Retries), nil
	case *dockerfile.Onbuild:
		config.OnBuild = append(slices.Clip(config.OnBuild), c.Expression)
		return "ONBUILD " + c.Expression, nil
	case *dockerfile.Volume:
		volumes := cloned(config.Volumes)
		for _, v := range c.Volumes {
			if strings.TrimSpace(v) == "" {
				return "", errdef.Invalid.Errorf("VOLUME specified can not be an empty string")
			}
			volumes[v] = struct{}{}
		}
		config.Volumes = volumes
		return fmt.Sprintf("VOLUME %v", c.Volumes), nil
	case *dockerfile.Expose:
		named, ports, err := exposed(c.Ports, words)
		if err != nil {
			return "", err
		}
		all := cloned(config.ExposedPorts)
		for _, p := range ports {
			all[p] = struct{}{}
		}
		config.ExposedPorts = all
		return "EXPOSE " + strings.Join(named, " "), nil
	}
	return "", errdef.Unsupported.Errorf("%s is not supported", strings.ToUpper(c.Name()))
}

func cloned[V any](m map[string]V) map[string]V {
	if m == nil {
		return map[string]V{}
	}
	return maps.Clone(m)
}

func withShell(config dockerspec.DockerOCIImageConfig, c dockerfile.Command) []string {
	if !c.Shell {
		return c.Line
	}
	return append(slices.Clone(shellOf(config)), strings.Join(c.Line, " "))
}

// joined is a working directory as WORKDIR changes it.
func joined(old, dir string) string {
	if path.IsAbs(dir) {
		return path.Clean(dir)
	}
	return path.Join("/", old, dir)
}

// exposed reads ports: 80, 80/udp, 8000-8010/tcp. It gives them as they are
// named, with what words makes of them, and one by one.
func exposed(specs []string, words func(string) ([]string, error)) (named, ports []string, err error) {
	for _, spec := range specs {
		list, err := words(spec)
		if err != nil {
			return nil, nil, errdef.Invalid.Wrap(err)
		}
		named = append(named, list...)
		for _, s := range list {
			more, err := portRange(s)
			if err != nil {
				return nil, nil, err
			}
			ports = append(ports, more...)
		}
	}
	return named, ports, nil
}

func portRange(s string) ([]string, error) {
	numbers, proto, ok := strings.Cut(strings.ToLower(s), "/")
	if !ok {
		proto = "tcp"
	}
	from, to, isRange := strings.Cut(numbers, "-")
	if !isRange {
		to = from
	}
	a, err1 := strconv.ParseUint(from, 10, 16)
	z, err2 := strconv.ParseUint(to, 10, 16)
	if err1 != nil || err2 != nil || z < a || proto != "tcp" && proto != "udp" && proto != "sctp" {
		return nil, errdef.Invalid.Errorf("Invalid containerPort: %s", s)
	}
	var ports []string
	for p := a; p <= z; p++ {
		ports = append(ports, fmt.Sprintf("%d/%s", p, proto))
	}
	return ports, nil
}
