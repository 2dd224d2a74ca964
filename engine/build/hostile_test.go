package build

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minke-os/minke/internal/errdef"
)

// raw is a context of these entries; those without a type are files.
func raw(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		text := h.Uname // stands for the content
		h.Uname = ""
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(text))
		}
		h.Mode = 0o644
		must(t, w.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			io.WriteString(w, text)
		}
	}
	must(t, w.Close())
	return b.Bytes()
}

func dockerfileOf(text string) tar.Header {
	return tar.Header{Name: "Dockerfile", Uname: "FROM busybox\n" + text}
}

func TestHostileContextsAreRefusedAndLeaveNothing(t *testing.T) {
	b := newBench(t)
	outside := filepath.Join(t.TempDir(), "outside")
	must(t, os.WriteFile(outside, []byte("FROM busybox\nRUN outside\n"), 0o644))
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
	}
	tests := []struct {
		name    string
		context []byte
		want    string // in the error
	}{
		{"dots", raw(t, dockerfileOf(""), tar.Header{Name: "../x", Uname: "x"}), "../x"},
		{"link-out-is-not-followed", raw(t, dockerfileOf("COPY l /x\n"), link("l", outside)), "COPY failed"},
		{"directory-link-out-is-not-followed", raw(t, dockerfileOf("COPY l/outside /x\n"), link("l", filepath.Dir(outside))), "COPY failed"},
		{"add-of-a-link-out", raw(t, dockerfileOf("ADD l /x\n"), link("l", outside)), "ADD failed"},
		{"entry-through-a-link", raw(t, dockerfileOf(""), link("l", filepath.Dir(outside)), tar.Header{Name: "l/y", Uname: "y"}), "l/y"},
		{"hard-link-out", raw(t, dockerfileOf("COPY h /\n"), tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "../../etc/passwd"}), "h"},
		{"dockerfile-is-a-link-out", raw(t, link("Dockerfile", outside)), "Dockerfile"},
		{"dockerfile-is-a-fifo", raw(t, tar.Header{Name: "Dockerfile", Typeflag: tar.TypeFifo}), "it is not a file"},
		{"dockerfile-is-a-directory", raw(t, tar.Header{Name: "Dockerfile/", Typeflag: tar.TypeDir}), "it is not a file"},
		{"ignore-file-is-a-fifo", raw(t, dockerfileOf(""), tar.Header{Name: ".dockerignore", Typeflag: tar.TypeFifo}), "it is not a file"},
		{"ignore-file-is-no-pattern", raw(t, dockerfileOf(""), tar.Header{Name: ".dockerignore", Uname: "[\n"}), ".dockerignore"},
		{"device", raw(t, dockerfileOf("COPY d /\n"), tar.Header{Name: "d", Typeflag: tar.TypeBlock, Devmajor: 8}), "neither a file nor a directory nor a link"},
		{"endless-name", raw(t, dockerfileOf(""), tar.Header{Name: strings.Repeat("d/", 4000) + "x", Uname: "x"}), "4096"},
		{"archive-that-leads-out", raw(t, dockerfileOf("ADD a.tar /sub/\n"), tar.Header{Name: "a.tar", Uname: string(raw(t, tar.Header{Name: "../../x", Uname: "x"}))}), "leads out"},
		{"cut-off", raw(t, dockerfileOf(""), tar.Header{Name: "big", Uname: strings.Repeat("x", 4096)})[:3000], "EOF"},
		{"huge-dockerfile", raw(t, tar.Header{Name: "Dockerfile", Uname: strings.Repeat("#\n", maxDockerfile)}), "larger than"},
		{"dockerfile-above", raw(t, dockerfileOf("RUN --mount=target=/m,source=../../etc true\n")), "file does not exist"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b.t = t
			_, err := Build(t.Context(), Deps{Store: b.s, Runner: b.runner}, Options{}, bytes.NewReader(tt.context), Output{Stdout: io.Discard, Stderr: io.Discard})
			if err == nil || !strings.Contains(err.Error(), tt.want) || errdef.Is(err, errdef.Internal) {
				t.Errorf("Build = %v (%s), want an error with %q", err, errdef.Of(err), tt.want)
			}
			if left, _ := os.ReadDir(filepath.Join(b.dir, "staging")); len(left) > 0 {
				t.Errorf("the build leaves %v in staging", left)
			}
		})
	}
}

// noRunner runs nothing: what a fuzzer makes up is not for execution.
type noRunner struct{}

func (noRunner) Run(context.Context, RunSpec) (RunResult, error) {
	return RunResult{}, errdef.Unsupported.Errorf("no commands here")
}

func FuzzContext(f *testing.F) {
	f.Add(raw(f, dockerfileOf("COPY a /\nADD b.tar /c/\n"), tar.Header{Name: "a", Uname: "a"}, tar.Header{Name: "b.tar", Uname: string(raw(f, tar.Header{Name: "x", Uname: "y"}))}))
	f.Add([]byte("FROM busybox\nARG x=${y:-z}\nENV a=${x#?} b=${x/z/w}\n"))
	b := newBench(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		_, err := Build(t.Context(), Deps{Store: b.s, Runner: noRunner{}}, Options{}, bytes.NewReader(body), Output{Stdout: io.Discard, Stderr: io.Discard})
		if left, _ := os.ReadDir(filepath.Join(b.dir, "staging")); len(left) > 0 {
			t.Errorf("the build leaves %v in staging (%v)", left, err)
		}
	})
}
