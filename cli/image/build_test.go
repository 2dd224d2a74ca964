package image

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minke-os/minke/cli/connect"
	"github.com/minke-os/minke/cli/term"
)

func TestSecretsComeFromFilesAndVariables(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("from a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	getenv := func(name string) string { return map[string]string{"KEY": "from a variable"}[name] }
	got, err := readSecrets([]string{"id=a,src=" + file, "id=b,env=KEY", "id=KEY", "type=env,id=c,src=KEY", "type=file,id=d,source=" + file}, getenv)
	want := map[string]string{"a": "from a file", "b": "from a variable", "KEY": "from a variable", "c": "from a variable", "d": "from a file"}
	if err != nil || len(got) != len(want) {
		t.Errorf("readSecrets = %q, %v", got, err)
	}
	for id, text := range want {
		if string(got[id]) != text {
			t.Errorf("secret %s = %q, want %q", id, got[id], text)
		}
	}
	for spec, want := range map[string]string{
		"src=x": "id is missing", "id=x,what=y": "unknown key", "id": "not key=value", "id=x,type=y,src=z": "unknown type", "id=missing": "no such file",
	} {
		if _, err := readSecrets([]string{spec}, getenv); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--secret "+spec) {
			t.Errorf("readSecrets(%s) = %v, want %q", spec, err, want)
		}
	}
	if err := os.Truncate(file, maxSecrets+1); err != nil {
		t.Fatal(err)
	}
	if _, err := readSecrets([]string{"id=a,src=" + file}, getenv); err == nil {
		t.Error("a secret that no header holds is accepted")
	}
}

func TestDockerfileIsFoundAsDockerDoes(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"ctx/Dockerfile": "default", "ctx/sub/other": "below", "elsewhere": "outside"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	for flag, want := range map[string]string{"": "Dockerfile", "ctx/sub/other": "sub/other", "sub/other": "sub/other", "elsewhere": ".minke.Dockerfile", "-": ".minke.Dockerfile"} {
		o := buildOptions{}
		o.Dockerfile = flag
		bc, err := o.open("ctx", strings.NewReader("typed"))
		if err != nil || bc.Dockerfile() != want {
			t.Errorf("-f %q: %v, %v; want %s", flag, bc, err, want)
			continue
		}
		var tar bytes.Buffer
		if err := bc.Tar(&tar); err != nil {
			t.Errorf("-f %q: %v", flag, err)
		}
		if text := map[string]string{"elsewhere": "outside", "-": "typed"}[flag]; !strings.Contains(tar.String(), text) {
			t.Errorf("-f %q: the context lacks %q", flag, text)
		}
	}
	o := buildOptions{}
	o.Dockerfile = "nowhere"
	if _, err := o.open("ctx", nil); err == nil || err.Error() != "no Dockerfile nowhere in ctx" {
		t.Errorf("-f nowhere: %v", err)
	}
}

func TestFlagsBecomeOptions(t *testing.T) {
	o := buildOptions{args: []string{"A=1", "HOME", "UNSET"}, labels: []string{"l=v", "empty"}, memory: "512m", swap: "-1", shm: "64k", ulimits: []string{"nofile=1:2"}, platform: "linux/arm/v7"}
	if err := o.fill(func(name string) string { return map[string]string{"HOME": "/root"}[name] }); err != nil {
		t.Fatal(err)
	}
	args := map[string]string{}
	for k, v := range o.BuildArgs {
		args[k] = *v
	}
	if !maps.Equal(args, map[string]string{"A": "1", "HOME": "/root"}) || !maps.Equal(o.Labels, map[string]string{"l": "v", "empty": ""}) ||
		o.Memory != 512<<20 || o.MemorySwap != -1 || o.ShmSize != 64<<10 || len(o.Ulimits) != 1 || o.Platforms[0].Variant != "v7" {
		t.Errorf("options = %+v, arguments %v", o.ImageBuildOptions, args)
	}
}

// TestProgress compares what is left on the terminal at the end.
func TestProgressShowsStepsAndWhatFailed(t *testing.T) {
	const output = "Step 1/3 : FROM busybox\n ---> 0123\nStep 2/3 : COPY a /\n ---> Using cache\n ---> 4567\nStep 3/3 : RUN make\n ---> Running in 89ab\n\x1b[91mwarn"
	for _, tt := range []struct {
		name, rest string
		err        error
		want       []string
	}{
		{"success", "ing\x1b[0m\n ---> cdef\nSuccessfully built cdef\n", nil,
			[]string{"[1/3] FROM busybox 2.0s", "[2/3] COPY a / cached", "[3/3] RUN make 3.0s", "Successfully built cdef", "Built in 10.0s"}},
		{"failure", "ing\x1b[0m\n", os.ErrInvalid, []string{"[1/3] FROM busybox 2.0s", "[2/3] COPY a / cached", "[3/3] RUN make 3.0s", "warning"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			p := newProgress(&connect.Session{Streams: term.Streams{Out: &out, Live: true}})
			now := p.began
			p.now = func() time.Time { now = now.Add(time.Second); return now }
			p.write(output)
			p.write(tt.rest)
			p.end(tt.err)
			if got := screen(out.String()); !slices.Equal(got, tt.want) {
				t.Errorf("on the terminal: %q\nwant             %q", got, tt.want)
			}
		})
	}
}

// screen obeys the few control sequences that progress uses.
func screen(text string) (lines []string) {
	row := 0
	for _, line := range strings.SplitAfter(text, "\n") {
		for _, c := range []struct {
			code string
			up   int
		}{{"\x1b[2A\x1b[J", 2}, {"\x1b[1A\x1b[K", 1}} {
			if rest, ok := strings.CutPrefix(line, c.code); ok {
				line, row = rest, row-c.up
				lines = lines[:row]
			}
		}
		if body, ended := strings.CutSuffix(line, "\n"); ended {
			lines = append(lines[:row], plain(body))
			row++
		}
	}
	return lines
}
