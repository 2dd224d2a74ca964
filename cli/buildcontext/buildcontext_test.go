package buildcontext

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func dir(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func contents(t *testing.T, c *Context) map[string]string {
	t.Helper()
	var buf bytes.Buffer
	if err := c.Tar(&buf); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	tr := tar.NewReader(&buf)
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		data, _ := io.ReadAll(tr)
		if hdr.Uid != 0 || hdr.Uname != "" {
			t.Errorf("%s belongs to %d %q", hdr.Name, hdr.Uid, hdr.Uname)
		}
		if hdr.Typeflag == tar.TypeReg {
			out[hdr.Name] = string(data)
		}
	}
}

func TestDockerignore(t *testing.T) {
	files := map[string]string{"Dockerfile": "FROM x", "a.txt": "a", "b.log": "b", "node_modules/x/y.js": "y", "logs/keep.log": "k", "logs/drop.log": "d"}
	tests := []struct {
		name, ignore string
		want         []string
	}{
		{"none", "", []string{"Dockerfile", "a.txt", "b.log", "logs/drop.log", "logs/keep.log", "node_modules/x/y.js"}},
		{"directory", "node_modules", []string{"Dockerfile", "a.txt", "b.log", "logs/drop.log", "logs/keep.log"}},
		{"pattern-and-exception", "**/*.log\n!logs/keep.log\nnode_modules", []string{"Dockerfile", "a.txt", "logs/keep.log"}},
		{"dockerfile-is-sent-anyway", "*", []string{"Dockerfile"}},
		{"comment", "# *\n", []string{"Dockerfile", "a.txt", "b.log", "logs/drop.log", "logs/keep.log", "node_modules/x/y.js"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := dir(t, files)
			if err := os.WriteFile(filepath.Join(root, ".dockerignore"), []byte(tt.ignore), 0o644); err != nil {
				t.Fatal(err)
			}
			c, err := Open(root, "Dockerfile", nil)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for name := range contents(t, c) {
				if name != ".dockerignore" {
					got = append(got, name)
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, tt.want) {
				t.Errorf("with %q the context has %q, want %q", tt.ignore, got, tt.want)
			}
		})
	}
}

func TestTemplatesAreExpanded(t *testing.T) {
	root := dir(t, map[string]string{"Dockerfile.template": "FROM %%X%%"})
	c, err := Open(root, "Dockerfile.template", func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("%%X%%"), []byte("alpine")) })
	if err != nil {
		t.Fatal(err)
	}
	if got := contents(t, c)["Dockerfile.template"]; got != "FROM alpine" {
		t.Errorf("Dockerfile = %q, want FROM alpine", got)
	}
}

func TestDigestsDependOnContentAndModeAlone(t *testing.T) {
	root := dir(t, map[string]string{"Dockerfile": "FROM x", "a": "1"})
	digest := func() string {
		t.Helper()
		c, err := Open(root, "Dockerfile", nil)
		if err != nil {
			t.Fatal(err)
		}
		d, err := c.Digest()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	first := digest()
	if err := os.Chtimes(filepath.Join(root, "a"), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if digest() != first {
		t.Error("another time of a file changes the digest")
	}
	if err := os.Chmod(filepath.Join(root, "a"), 0o755); err != nil {
		t.Fatal(err)
	}
	second := digest()
	if second == first {
		t.Error("another mode of a file does not change the digest")
	}
	if err := os.WriteFile(filepath.Join(root, "a"), []byte("2"), 0o755); err != nil {
		t.Fatal(err)
	}
	if digest() == second {
		t.Error("other content does not change the digest")
	}
}

func TestOpenRefuses(t *testing.T) {
	root := dir(t, map[string]string{"a": "1"})
	for file, want := range map[string]string{"Dockerfile": "no Dockerfile Dockerfile in ", "../Dockerfile": "is outside of the build context"} {
		if _, err := Open(root, file, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open(%s) = %v, want %q", file, err, want)
		}
	}
}
