package dockerfile

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// expandTest stands for a builder: it shows where words are expanded.
func expandTest(word string) (string, error) { return strings.ReplaceAll(word, "$v", "value"), nil }

// ours and theirs print a Dockerfile in the same words.

func ours(text []byte) (out []string, err error) {
	f, err := Parse(text)
	if err != nil {
		return nil, err
	}
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	say("escape %c, warnings %q", f.Escape, f.Warnings)
	for _, a := range f.Global {
		say("%s", mine(a))
	}
	for _, st := range f.Stages {
		say("stage %q from %q on %q: %q", st.Name, st.Base, st.Platform, st.Source)
		for _, c := range st.Commands {
			say("%q %q %s", c.Name(), c.String(), mine(c))
		}
	}
	return out, nil
}

func mine(c Instruction) string {
	failed := ""
	if e, ok := c.(Expandable); ok {
		if err := e.Expand(expandTest); err != nil {
			failed = err.Error()
		}
	}
	sources := func(s Sources) string {
		var inline []string
		for _, h := range s.Inline {
			inline = append(inline, fmt.Sprintf("%q %v %q", h.Name, h.Expand, h.Content()))
		}
		return fmt.Sprintf("%q %q %q %q %q %q", s.Paths, inline, s.Dest, s.Chown, s.Chmod, s.Exclude)
	}
	command := func(c Command) string {
		var files []string
		for _, h := range c.Files {
			files = append(files, fmt.Sprintf("%q %q %v", h.Name, h.Text, h.Chomp))
		}
		return fmt.Sprintf("%q %v %q", c.Line, c.Shell, files)
	}
	pairs := func(list []Pair) string {
		var all []string
		for _, p := range list {
			all = append(all, p.Key, p.Value)
		}
		return fmt.Sprintf("%q", all)
	}
	switch c := c.(type) {
	case *Add:
		return sources(c.Sources) + fmt.Sprintf(" %q %s %s", c.Checksum, maybe(c.Unpack), maybe(c.KeepGitDir))
	case *Arg:
		var all []string
		for _, a := range c.Args {
			all = append(all, a.Key, maybe(a.Value))
		}
		return fmt.Sprintf("ARG %q", all)
	case *Cmd:
		return command(c.Command)
	case *Copy:
		return sources(c.Sources) + fmt.Sprintf(" %q %v", c.From, c.Parents)
	case *Entrypoint:
		return command(c.Command)
	case *Env:
		return pairs(c.Vars)
	case *Expose:
		return fmt.Sprintf("%q", c.Ports)
	case *Healthcheck:
		return fmt.Sprintf("%+v", *c.Health)
	case *Label:
		return pairs(c.Labels)
	case *Maintainer:
		return c.Maintainer
	case *Onbuild:
		return c.Expression
	case *Run:
		mounts := ""
		for _, m := range c.Mounts {
			mounts += fmt.Sprintf("%s %q %q %q %v %d %q %s %v %s %s %s %s;", m.Type, m.From, m.Source, m.Target, m.ReadOnly, m.Size, m.ID, m.Sharing, m.Required, maybe(m.Env), maybe(m.Mode), maybe(m.UID), maybe(m.GID))
		}
		if failed != "" {
			mounts = ""
		}
		return command(c.Command) + fmt.Sprintf(" %s %v %d %s %s", c.Network, c.Insecure, len(c.Devices), mounts, failed)
	case *Shell:
		return fmt.Sprintf("%q", c.Shell)
	case *StopSignal:
		return c.Signal
	case *User:
		return c.User
	case *Volume:
		return fmt.Sprintf("%q", c.Volumes)
	case *Workdir:
		return c.Path
	}
	return "?"
}

func maybe[T any](p *T) string {
	if p == nil {
		return "unset"
	}
	return fmt.Sprintf("%v", *p)
}

func theirs(text []byte) (out []string, err error) {
	tree, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	stages, global, err := instructions.Parse(tree.AST, linter.New(&linter.Config{}))
	if err != nil {
		return nil, err
	}
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	var warnings []string
	for _, w := range tree.Warnings {
		warnings = append(warnings, w.Short)
	}
	say("escape %c, warnings %q", tree.EscapeToken, warnings)
	for i := range global {
		say("%s", foreign(&global[i]))
	}
	for _, st := range stages {
		say("stage %q from %q on %q: %q", st.Name, st.BaseName, st.Platform, st.SourceCode)
		for _, c := range st.Commands {
			if on, ok := c.(*instructions.OnbuildCommand); ok {
				if err := triggers(expression(on)); err != nil {
					return nil, err
				}
			}
			say("%q %q %s", c.Name(), fmt.Sprint(c), foreign(c))
		}
	}
	return out, nil
}

// triggers finds out what BuildKit does when the next build does: whether what
// ONBUILD notes is an instruction.
func triggers(line string) error {
	tree, err := parser.Parse(strings.NewReader(line))
	if err != nil {
		return err
	}
	_, err = instructions.ParseInstructionWithLinter(tree.AST.Children[0], linter.New(&linter.Config{}))
	return err
}

// expression is what ONBUILD notes without what is not the instruction's: spaces
// at its ends, and "--", which ends ONBUILD's own flags.
func expression(c *instructions.OnbuildCommand) string {
	first, docs, more := strings.Cut(c.Expression, "\n")
	if first = strings.TrimSpace(strings.TrimPrefix(first, "-- ")); more {
		first += "\n"
	}
	return first + docs
}

func foreign(c instructions.Command) string {
	failed := ""
	if e, ok := c.(instructions.SupportsSingleWordExpansion); ok {
		if err := e.Expand(expandTest); err != nil {
			failed = err.Error()
		}
	}
	sources := func(s instructions.SourcesAndDest, chown, chmod string, exclude []string) string {
		var inline []string
		for _, h := range s.SourceContents {
			inline = append(inline, fmt.Sprintf("%q %v %q", h.Path, h.Expand, h.Data))
		}
		return fmt.Sprintf("%q %q %q %q %q %q", s.SourcePaths, inline, s.DestPath, chown, chmod, exclude)
	}
	command := func(c instructions.ShellDependantCmdLine) string {
		var files []string
		for _, h := range c.Files {
			files = append(files, fmt.Sprintf("%q %q %v", h.Name, h.Data, h.Chomp))
		}
		if len(c.CmdLine) == 1 && c.CmdLine[0] == "" && c.PrependShell {
			c.CmdLine = nil
		}
		return fmt.Sprintf("%q %v %q", c.CmdLine, c.PrependShell, files)
	}
	pairs := func(list instructions.KeyValuePairs) string {
		var all []string
		for _, p := range list {
			all = append(all, p.Key, p.Value)
		}
		return fmt.Sprintf("%q", all)
	}
	switch c := c.(type) {
	case *instructions.AddCommand:
		return sources(c.SourcesAndDest, c.Chown, c.Chmod, c.ExcludePatterns) + fmt.Sprintf(" %q %s %s", c.Checksum, maybe(c.Unpack), maybe(c.KeepGitDir))
	case *instructions.ArgCommand:
		var all []string
		for _, a := range c.Args {
			all = append(all, a.Key, maybe(a.Value))
		}
		return fmt.Sprintf("ARG %q", all)
	case *instructions.CmdCommand:
		return command(c.ShellDependantCmdLine)
	case *instructions.CopyCommand:
		return sources(c.SourcesAndDest, c.Chown, c.Chmod, c.ExcludePatterns) + fmt.Sprintf(" %q %v", c.From, c.Parents)
	case *instructions.EntrypointCommand:
		return command(c.ShellDependantCmdLine)
	case *instructions.EnvCommand:
		return pairs(c.Env)
	case *instructions.ExposeCommand:
		return fmt.Sprintf("%q", c.Ports)
	case *instructions.HealthCheckCommand:
		return fmt.Sprintf("%+v", *c.Health)
	case *instructions.LabelCommand:
		return pairs(c.Labels)
	case *instructions.MaintainerCommand:
		return c.Maintainer
	case *instructions.OnbuildCommand:
		return expression(c)
	case *instructions.RunCommand:
		mounts := ""
		for _, m := range instructions.GetMounts(c) {
			mounts += fmt.Sprintf("%s %q %q %q %v %d %q %s %v %s %s %s %s;", m.Type, m.From, m.Source, m.Target, m.ReadOnly, m.SizeLimit, m.CacheID, m.CacheSharing, m.Required, maybe(m.Env), maybe(m.Mode), maybe(m.UID), maybe(m.GID))
		}
		if failed != "" {
			mounts = ""
		}
		insecure := instructions.GetSecurity(c) == instructions.SecurityInsecure
		return command(c.ShellDependantCmdLine) + fmt.Sprintf(" %s %v %d %s %s", instructions.GetNetwork(c), insecure, len(instructions.GetDevices(c)), mounts, failed)
	case *instructions.ShellCommand:
		return fmt.Sprintf("%q", c.Shell)
	case *instructions.StopSignalCommand:
		return c.Signal
	case *instructions.UserCommand:
		return c.User
	case *instructions.VolumeCommand:
		return fmt.Sprintf("%q", c.Volumes)
	case *instructions.WorkdirCommand:
		return c.Path
	}
	return "?"
}

// compare reads text with both parsers. Errors need not have the same words.
func compare(t *testing.T, text []byte) {
	t.Helper()
	got, err := ours(text)
	want, wantErr := theirs(text)
	if (err == nil) != (wantErr == nil) {
		t.Errorf("error = %v\nBuildKit has %v\nfor %q", err, wantErr, text)
	} else if !reflect.DeepEqual(got, want) {
		t.Errorf("got      %s\nBuildKit %s\nfor %q", strings.Join(got, "\n  "), strings.Join(want, "\n  "), text)
	}
}

// TestBuildKitsOwnFilesAreReadAlike has BuildKit's test files, where the module
// cache has them.
func TestBuildKitsOwnFilesAreReadAlike(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/buildkit").Output()
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	filepath.WalkDir(strings.TrimSpace(string(dir)), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.Contains(filepath.Base(path), "Dockerfile") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		read++
		t.Run(filepath.Base(filepath.Dir(path)), func(t *testing.T) { compare(t, text) })
		return nil
	})
	if read < 20 {
		t.Errorf("only %d files were found in %s", read, dir)
	}
}

func FuzzParseIsLikeBuildKit(f *testing.F) {
	for _, text := range samples {
		f.Add([]byte(text))
		f.Add([]byte("FROM a\n" + text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if skip(text) {
			t.Skip("BuildKit is known to read this otherwise, see skip")
		}
		compare(t, text)
	})
}

// skip leaves out where BuildKit takes bytes for characters, lines that it finds
// too long, and devices, which builds here refuse whatever they are called.
func skip(text []byte) bool {
	return len(text) > 60000 || bytes.Contains(text, []byte("--device=")) || bytes.ContainsFunc(text, func(c rune) bool {
		return c > unicode.MaxASCII || c == 0
	})
}
