package build

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/klauspost/compress/gzip"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"

	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/overlay"
	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/oci"
)

// A chrootRunner runs commands in the overlay mount, with nothing around.
type chrootRunner struct {
	t    testing.TB
	s    *store.Store
	mu   sync.Mutex
	runs int
	spec RunSpec // the last
	look func(RunSpec)
}

func (r *chrootRunner) Run(ctx context.Context, spec RunSpec) (RunResult, error) {
	r.mu.Lock()
	r.runs++
	r.spec = spec
	id := fmt.Sprintf("%064x", r.runs)
	r.mu.Unlock()
	if r.look != nil {
		r.look(spec)
	}
	spec.Started(id)
	m, err := r.s.Mount(spec.Parent)
	if err != nil {
		return RunResult{}, err
	}
	dir := testenv.DiskDir(r.t)
	m.Upper, m.Work = filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{m.Upper, m.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return RunResult{}, err
		}
	}
	f, err := m.Open()
	if err != nil {
		return RunResult{}, err
	}
	defer f.Close()
	cmd := exec.CommandContext(ctx, spec.Cmd[0], spec.Cmd[1:]...)
	cmd.Path = spec.Cmd[0]
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: overlay.Path(f)}
	cmd.Dir = "/" + strings.TrimPrefix(spec.Config.WorkingDir, "/")
	cmd.Env, cmd.Stdout, cmd.Stderr = spec.Config.Env, spec.Stdout, spec.Stderr
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && ctx.Err() == nil {
		return RunResult{ExitCode: exit.ExitCode()}, nil
	}
	if err != nil {
		return RunResult{}, errors.Join(ctx.Err(), err)
	}
	l, err := r.s.Commit(ctx, spec.Parent, m.Upper, m)
	return RunResult{Layer: l}, err
}

// A bench is a store with a busybox image, and a runner.
type bench struct {
	t      testing.TB
	s      *store.Store
	runner *chrootRunner
	dir    string
}

func newBench(t testing.TB) *bench {
	t.Helper()
	return benchOn(t, testenv.BusyboxTar(t))
}

func benchOn(t testing.TB, base []byte) *bench {
	t.Helper()
	testenv.NeedRoot(t)
	dir := testenv.DiskDir(t)
	db, err := bbolt.Open(filepath.Join(dir, "minke.db"), 0o600, nil)
	must(t, err)
	t.Cleanup(func() { db.Close() })
	s, err := store.Open(dir, db, store.Options{})
	must(t, err)
	t.Cleanup(func() { s.Close() })
	b := &bench{t: t, s: s, runner: &chrootRunner{t: t, s: s}, dir: dir}
	l, err := s.AddLayer(t.Context(), "", bytes.NewReader(base))
	must(t, err)
	config := fmt.Sprintf(`{"os":"linux","architecture":"amd64","config":{"Env":["PATH=/bin"],"Cmd":["sh"]},"rootfs":{"type":"layers","diff_ids":[%q]},"history":[{"created_by":"base"}]}`, l.DiffID)
	id, err := s.PutImage(t.Context(), []byte(config), "")
	must(t, err)
	must(t, s.Tag(id, ref(t, "busybox")))
	return b
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ref(t testing.TB, s string) oci.Reference {
	t.Helper()
	r, err := oci.ParseReference(s)
	must(t, err)
	return r
}

// files of a context; names that end in a slash are directories.
type files map[string]string

func (f files) tar(t testing.TB) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range sorted(f) {
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(f[name])), Uid: 1000, Gid: 1000}
		if target, ok := strings.CutPrefix(f[name], "-> "); ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, target, 0
		}
		if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Mode, h.Size = tar.TypeDir, 0o755, 0
		}
		must(t, w.WriteHeader(h))
		if h.Typeflag == tar.TypeReg {
			io.WriteString(w, f[name])
		}
	}
	must(t, w.Close())
	return buf.Bytes()
}

// build runs a build and gives what it printed.
func (b *bench) build(o Options, f files) (oci.ImageID, string, error) {
	b.t.Helper()
	var out bytes.Buffer
	id, err := Build(b.t.Context(), Deps{Store: b.s, Runner: b.runner}, o, bytes.NewReader(f.tar(b.t)), Output{Stdout: &out, Stderr: &out})
	if left, _ := os.ReadDir(filepath.Join(b.dir, "staging")); len(left) > 0 {
		b.t.Errorf("the build leaves %v in staging", left)
	}
	return id, out.String(), err
}

func (b *bench) mustBuild(o Options, f files) (store.Image, string) {
	b.t.Helper()
	id, out, err := b.build(o, f)
	if err != nil {
		b.t.Fatalf("Build: %v\n%s", err, out)
	}
	img, err := b.s.Image(id)
	must(b.t, err)
	return img, out
}

func (b *bench) root(img store.Image) string {
	b.t.Helper()
	var chain oci.ChainID
	for _, d := range img.Config.RootFS.DiffIDs {
		chain = oci.Chain(chain, oci.DiffID(d))
	}
	m, err := b.s.Mount(chain)
	must(b.t, err)
	f, err := m.Open()
	must(b.t, err)
	b.t.Cleanup(func() { f.Close() })
	return overlay.Path(f)
}

func (b *bench) has(img store.Image, want files) {
	b.t.Helper()
	root := b.root(img)
	for _, name := range sorted(want) {
		if want[name] == "missing" {
			if _, err := os.Lstat(path.Join(root, name)); !errors.Is(err, os.ErrNotExist) {
				b.t.Errorf("%s is in the image: %v", name, err)
			}
			continue
		}
		got, err := os.ReadFile(path.Join(root, name))
		if err != nil || string(got) != want[name] {
			b.t.Errorf("%s = %q, %v; want %q", name, got, err, want[name])
		}
	}
}

func createdBy(img store.Image) []string {
	var lines []string
	for _, h := range img.Config.History {
		lines = append(lines, h.CreatedBy)
	}
	return lines
}

func TestOutputIsTheClassicBuilders(t *testing.T) {
	b := newBench(t)
	f := files{"Dockerfile": "FROM busybox AS base\nCOPY a /a\nRUN cat /a && echo ran > /b\nCMD [\"x\", \"y\"]\n", "a": "content\n"}
	o := Options{Tags: []oci.Reference{ref(t, "app:1")}, Remove: true, Args: map[string]*string{"NOBODY": nil}}
	img, out := b.mustBuild(o, f)
	var ids []string
	for i, at := img, 0; at < 4; at++ {
		ids = append([]string{i.ID.Short()}, ids...)
		if i.Parent == "" {
			break
		}
		var err error
		i, err = b.s.Image(i.Parent)
		must(t, err)
	}
	want := fmt.Sprintf(`Step 1/4 : FROM busybox AS base
 ---> %[1]s
Step 2/4 : COPY a /a
 ---> %[2]s
Step 3/4 : RUN cat /a && echo ran > /b
 ---> Running in 000000000000
content
Removing intermediate container 000000000000
 ---> %[3]s
Step 4/4 : CMD ["x", "y"]
 ---> %[4]s
[Warning] One or more build-args [NOBODY] were not consumed
Successfully built %[4]s
Successfully tagged app:1
`, ids[0], ids[1], ids[2], ids[3])
	if out != want {
		t.Errorf("output:\n%s\nwant:\n%s", out, want)
	}
	b.has(img, files{"a": "content\n", "b": "ran\n"})

	again, out := b.mustBuild(o, f)
	want = fmt.Sprintf(`Step 1/4 : FROM busybox AS base
 ---> %[1]s
Step 2/4 : COPY a /a
 ---> Using cache
 ---> %[2]s
Step 3/4 : RUN cat /a && echo ran > /b
 ---> Using cache
 ---> %[3]s
Step 4/4 : CMD ["x", "y"]
 ---> Using cache
 ---> %[4]s
[Warning] One or more build-args [NOBODY] were not consumed
Successfully built %[4]s
Successfully tagged app:1
`, ids[0], ids[1], ids[2], ids[3])
	if out != want || again.ID != img.ID {
		t.Errorf("output with cache:\n%s\nwant:\n%s", out, want)
	}
	f["a"] = "other\n"
	if _, out := b.mustBuild(o, f); strings.Contains(out, "Using cache") {
		t.Errorf("the cache is hit though a file has changed:\n%s", out)
	}
	if b.runner.runs != 2 {
		t.Errorf("%d commands were run, want 2", b.runner.runs)
	}
	o.NoCache = true
	if _, out := b.mustBuild(o, f); strings.Contains(out, "Using cache") {
		t.Errorf("the cache is hit in spite of NoCache:\n%s", out)
	}
}

func TestHistoryIsTheClassicBuilders(t *testing.T) {
	b := newBench(t)
	img, _ := b.mustBuild(Options{Args: map[string]*string{"V": new("2")}, Labels: map[string]string{"l": "m"}}, files{"Dockerfile": `FROM busybox
MAINTAINER me
ARG V=1
ENV A=b C="d e"
LABEL x=y
WORKDIR /work/dir
COPY f sub/
RUN echo $V $C >out
USER nobody
EXPOSE 80 53/udp
VOLUME /data
STOPSIGNAL SIGINT
HEALTHCHECK --interval=30s CMD true
ONBUILD RUN echo later
SHELL ["/bin/ash", "-c"]
ENTRYPOINT entry
CMD ["a", "b"]
`, "f": "f"})
	lines := createdBy(img)
	copied := lines[6]
	if !strings.HasPrefix(copied, "/bin/sh -c #(nop) COPY file:") || !strings.HasSuffix(copied, " in sub/ ") {
		t.Errorf("history of COPY = %q", copied)
	}
	lines[6] = "COPY"
	want := []string{"base",
		"/bin/sh -c #(nop)  MAINTAINER me", "/bin/sh -c #(nop)  ARG V=1", "/bin/sh -c #(nop)  ENV A=b C=d e", "/bin/sh -c #(nop)  LABEL x=y",
		"/bin/sh -c #(nop) WORKDIR /work/dir", "COPY", "|1 V=2 /bin/sh -c echo $V $C >out", "/bin/sh -c #(nop)  USER nobody",
		"/bin/sh -c #(nop)  EXPOSE 53/udp 80", "/bin/sh -c #(nop)  VOLUME [/data]", "/bin/sh -c #(nop)  STOPSIGNAL SIGINT",
		`/bin/sh -c #(nop)  HEALTHCHECK &{["CMD-SHELL" "true"] "30s" "0s" "0s" 0}`, "/bin/sh -c #(nop)  ONBUILD RUN echo later",
		"/bin/ash -c #(nop)  SHELL [/bin/ash -c]", `/bin/ash -c #(nop)  ENTRYPOINT ["/bin/ash" "-c" "entry"]`,
		`/bin/ash -c #(nop)  CMD ["a" "b"]`, "/bin/ash -c #(nop)  LABEL l=m"}
	if !slices.Equal(lines, want) {
		t.Errorf("history = %q\nwant      %q", lines, want)
	}
	c := img.Config.Config
	if c.User != "nobody" || c.WorkingDir != "/work/dir" || c.StopSignal != "SIGINT" || img.Config.Author != "me" ||
		!slices.Equal(c.Env, []string{"PATH=/bin", "A=b", "C=d e"}) || !slices.Equal(sorted(c.ExposedPorts), []string{"53/udp", "80/tcp"}) ||
		!slices.Equal(c.OnBuild, []string{"RUN echo later"}) || !slices.Equal(sorted(c.Labels), []string{"l", "x"}) ||
		!slices.Equal(sorted(c.Volumes), []string{"/data"}) || !slices.Equal(c.Cmd, []string{"a", "b"}) {
		t.Errorf("configuration = %+v", c)
	}
	b.has(img, files{"work/dir/sub/f": "f", "work/dir/out": "2 d e\n"})
}

func TestCopyPutsFilesWhereDockerDoes(t *testing.T) {
	ctx := files{"f": "f", "g": "g", "d/": "", "d/x": "x", "d/sub/y": "y", "d/link": "-> x", "top": "-> d/x", "bad": "-> /etc/passwd",
		"ignored/a": "a", "ignored/keep": "keep", ".dockerignore": "ignored/*\n!ignored/keep\n*.tmp\n", "t.tmp": "t"}
	tests := []struct {
		name       string
		dockerfile string
		want       files
	}{
		{"file-to-a-new-name", "COPY f /new", files{"new": "f"}},
		{"file-into-a-new-directory", "COPY f /new/", files{"new/f": "f"}},
		{"file-into-a-directory-that-is-there", "COPY f /etc", files{"etc/f": "f", "etc/passwd": passwd}},
		{"relative-to-workdir", "WORKDIR /w\nCOPY f .\nCOPY g h/i", files{"w/f": "f", "w/h/i": "g"}},
		{"content-of-a-directory", "COPY d /new", files{"new/x": "x", "new/sub/y": "y", "new/link": "x"}},
		{"directory-into-a-directory-that-is-there", "COPY d /etc", files{"etc/x": "x", "etc/passwd": passwd}},
		{"several-and-wildcards", "COPY [fg] d/x /new/", files{"new/f": "f", "new/g": "g", "new/x": "x"}},
		{"through-a-link-in-the-image", "RUN ln -s /etc /e\nCOPY f /e/", files{"etc/f": "f", "etc/passwd": passwd}},
		{"link-as-a-source-is-followed", "COPY top /new", files{"new": "x"}},
		{"everything-but-what-is-ignored", "COPY . /new", files{"new/f": "f", "new/ignored/keep": "keep", "new/ignored/a": "missing", "new/t.tmp": "missing"}},
		{"from-a-stage", "RUN echo s > /s\nFROM busybox\nCOPY --from=0 /s /copied", files{"copied": "s\n"}},
		{"from-a-named-stage-through-a-link", "RUN echo s > /s && ln -s s /l\nFROM scratch\nCOPY --from=ONE /l /copied", files{"copied": "s\n"}},
		{"from-an-image", "COPY --from=busybox /etc/passwd /p", files{"p": passwd}},
		{"with-parents", "COPY --parents d/sub/y d/[x] /new", files{"new/d/sub/y": "y", "new/d/x": "x", "new/x": "missing"}},
		{"with-parents-below-the-pivot", "COPY --parents d/./sub f /new/", files{"new/sub/y": "y", "new/f": "f", "new/d": "missing"}},
		{"with-exceptions", "COPY --exclude=sub --exclude=li* --exclude=g d [fg] /new/", files{"new/x": "x", "new/f": "f", "new/sub": "missing", "new/link": "missing", "new/g": "missing"}},
		{"exceptions-of-exceptions", "COPY --exclude=** --exclude=!sub/y d /new/", files{"new/sub/y": "y", "new/x": "missing"}},
		{"as-a-link", "COPY --link f /etc/", files{"etc/f": "f", "etc/passwd": passwd}},
		{"here-document", "ENV V=1\nCOPY <<one <<\"two\" /new/\n$V\none\n$V\ntwo\n", files{"new/one": "1\n", "new/two": "$V\n"}},
		{"from-scratch", "FROM scratch\nCOPY d/x /a/b/\nWORKDIR /w", files{"a/b/x": "x"}},
		{"run-here-document", "RUN <<EOF\necho a > /a\necho b > /b\nEOF", files{"a": "a\n", "b": "b\n"}},
		{"run-indented-here-document-with-interpreter", "RUN <<-EOF\n\t#!/bin/ash\n\techo yes > /c\n\tEOF", files{"c": "yes\n"}},
		{"run-with-a-here-document", "RUN cat <<EOF > /c\nhi $PATH\nEOF", files{"c": "hi /bin\n"}},
		{"run-here-document-with-interpreter", "RUN <<EOF\n#!/bin/ash\necho \"it's $0\" | cut -c1-9 > /c\nEOF", files{"c": "it's /tmp\n"}},
		{"run-exec-form", "RUN [\"/bin/touch\", \"/a b\"]", files{"a b": ""}},
		{"onbuild-runs-in-the-next-stage", "ONBUILD COPY f /triggered\nFROM one", files{"triggered": "f"}},
	}
	b := newBench(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b.t = t
			ctx["Dockerfile"] = "FROM busybox AS one\n" + tt.dockerfile
			img, _ := b.mustBuild(Options{}, ctx)
			b.has(img, tt.want)
		})
	}
}

const passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\nuser:x:1000:1000::/home:/bin/sh\n"

func TestCopySetsOwnerAndMode(t *testing.T) {
	b := newBench(t)
	img, _ := b.mustBuild(Options{}, files{"Dockerfile": `FROM busybox
COPY f /plain
COPY --chown=user f /new/named
COPY --chown=7:users --chmod=4711 f /numbered
COPY --chmod=u=rwX,go-r+t,a+s d /letters
`, "f": "f", "d/f": "f", "d/sub/": ""})
	for name, want := range map[string]string{"plain": "0:0 644", "letters/f": "0:0 7600", "letters/sub": "0:0 7711", "new": "1000:1000 755", "new/named": "1000:1000 644", "numbered": "7:100 4711"} {
		var st syscall.Stat_t
		must(t, syscall.Lstat(path.Join(b.root(img), name), &st))
		if got := fmt.Sprintf("%d:%d %o", st.Uid, st.Gid, st.Mode&0o7777); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}

func TestAddUnpacksAndFetches(t *testing.T) {
	content := files{"in/": "", "in/side": "side"}.tar(t)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write(content)
	must(t, z.Close())
	compress := exec.Command(testenv.Need(t, "xz"), "-c")
	compress.Stdin = bytes.NewReader(content)
	xz, err := compress.Output()
	must(t, err)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".tar") {
			w.Write(content)
			return
		}
		io.WriteString(w, "from "+r.URL.Path)
	}))
	defer srv.Close()
	b := newBench(t)
	img, _ := b.mustBuild(Options{}, files{"Dockerfile": "FROM scratch\nADD a.tar.gz /un\nADD f /un/f\nADD " + srv.URL + "/some/file " + srv.URL + "/other /got/\n",
		"a.tar.gz": packed.String(), "f": "plain"})
	b.has(img, files{"un/in/side": "side", "un/f": "plain", "got/file": "from /some/file", "got/other": "from /other"})
	img, _ = b.mustBuild(Options{}, files{"Dockerfile": fmt.Sprintf(`FROM scratch
ADD a.tar.xz /xz/
ADD --unpack=false a.tar.xz /
ADD --unpack --checksum=%[1]s %[2]s/b.tar /url/
ADD --checksum=%[1]s %[2]s/b.tar /packed/
`, digest.FromBytes(content), srv.URL), "a.tar.xz": string(xz)})
	b.has(img, files{"xz/in/side": "side", "a.tar.xz": string(xz), "url/in/side": "side", "packed/b.tar": string(content)})
}

func TestArgsFollowTheirScopes(t *testing.T) {
	b := newBench(t)
	o := Options{Args: map[string]*string{"GIVEN": new("given"), "http_proxy": new("proxy")}, Platform: oci.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}}
	f := files{"Dockerfile": `ARG BASE=busybox
ARG TOP=top
FROM ${BASE}
ARG GIVEN=default
ARG TOP
ARG PLAIN=plain-$TOP
ARG TARGETPLATFORM
RUN echo $GIVEN $TOP $PLAIN $TARGETPLATFORM $http_proxy $BASE. > /out
ENV PLAIN=env
RUN echo $PLAIN > /env
FROM busybox
RUN echo "$GIVEN." > /out2
COPY --from=0 /out /env /
`}
	img, _ := b.mustBuild(o, f)
	b.has(img, files{"out": "given top plain-top linux/arm/v7 proxy .\n", "env": "env\n", "out2": ".\n"})
	o.Args["GIVEN"] = new("changed")
	img, _ = b.mustBuild(o, f)
	b.has(img, files{"out": "changed top plain-top linux/arm/v7 proxy .\n"})
}

func TestRunIsToldWhatTheRequestSays(t *testing.T) {
	b := newBench(t)
	o := Options{Host: HostConfig{NetworkMode: "host", Volumes: []string{"/a:/b:ro"}}}
	img, _ := b.mustBuild(o, files{"Dockerfile": "FROM busybox\nUSER root\nENTRYPOINT [\"x\"]\nRUN true\n"})
	spec := b.runner.spec
	if !slices.Equal(spec.Host.Volumes, o.Host.Volumes) || spec.Host.NetworkMode != "host" || spec.Config.User != "root" || spec.Config.Entrypoint != nil || spec.Image != img.Parent {
		t.Errorf("Run was told %+v", spec)
	}
	b.mustBuild(o, files{"Dockerfile": "FROM busybox\nRUN --network=none true\n"})
	if got := b.runner.spec.Host.NetworkMode; got != "none" {
		t.Errorf("RUN --network=none runs with network %q", got)
	}
}

// A command that changes no file makes no layer, as with Docker, and is found in
// the cache all the same.
func TestCommandWithoutChangesMakesNoLayer(t *testing.T) {
	b := newBench(t)
	f := files{"Dockerfile": "FROM busybox\nRUN true\nRUN echo x > /x\n"}
	img, _ := b.mustBuild(Options{}, f)
	if n := len(img.Config.RootFS.DiffIDs); n != 2 || !img.Config.History[1].EmptyLayer {
		t.Errorf("%d layers, history %+v; want the base's and that of the second command", n, img.Config.History)
	}
	again, out := b.mustBuild(Options{}, f)
	if again.ID != img.ID || strings.Count(out, "Using cache") != 2 {
		t.Errorf("built again it is %s, not %s:\n%s", again.ID, img.ID, out)
	}
}

func TestTargetEndsTheBuild(t *testing.T) {
	b := newBench(t)
	f := files{"Dockerfile": "FROM busybox AS one\nRUN echo 1 > /1\nFROM busybox AS two\nRUN false\n"}
	img, out := b.mustBuild(Options{Target: "one"}, f)
	b.has(img, files{"1": "1\n"})
	if !strings.HasPrefix(out, "Step 1/2 : ") {
		t.Errorf("output begins with %.20q, want Step 1/2", out)
	}
}

func TestErrorsSayWhatAndWhere(t *testing.T) {
	tests := []struct {
		name       string
		dockerfile string
		o          Options
		want       string
	}{
		{"unknown-instruction", "FROM busybox\n\nFORM x\n", Options{}, "dockerfile parse error on line 3: unknown instruction: FORM (did you mean FROM?)"},
		{"no-from", "ARG x", Options{}, "no build stage in current context: the Dockerfile has no FROM"},
		{"empty", "\n", Options{}, "the Dockerfile is empty"},
		{"failing-command", "FROM busybox\nRUN false\n", Options{}, "The command '/bin/sh -c false' returned a non-zero code: 1"},
		{"missing-file", "FROM busybox\nCOPY x /\n", Options{}, "COPY failed: file not found in build context or excluded by .dockerignore: stat x: file does not exist"},
		{"ignored-file", "FROM busybox\nCOPY secret /\n", Options{}, "COPY failed: file not found in build context or excluded by .dockerignore: stat secret: file does not exist"},
		{"nothing-matches", "FROM busybox\nCOPY z* /\n", Options{}, "COPY failed: no source files were specified"},
		{"missing-in-stage", "FROM busybox AS a\nFROM busybox\nCOPY --from=a /x /\n", Options{}, "COPY failed: stat x: file does not exist"},
		{"two-files-to-one", "FROM busybox\nCOPY f secret2 /x\n", Options{}, "When using COPY with more than one source file, the destination must be a directory and end with a /"},
		{"required-secret", "FROM busybox\nRUN --mount=type=secret,id=s,required true\n", Options{}, "RUN --mount=type=secret: secret s: not found; give it with \"minke build --secret id=s,src=FILE\""},
		{"agent", "FROM busybox\nRUN --mount=type=ssh,required true\n", Options{}, "RUN --mount=type=ssh: there is no agent: the classic builder's protocol cannot forward one; pass a key with --secret instead"},
		{"mount-of-nothing", "FROM busybox\nRUN --mount=source=x,target=/x true\n", Options{}, "RUN --mount=type=bind: RUN failed: file not found in build context or excluded by .dockerignore: stat x: file does not exist"},
		{"mount-on-the-root", "FROM busybox\nRUN --mount=target=/a/.. true\n", Options{}, "RUN --mount=type=bind: invalid mount target \"/a/..\""},
		{"bad-mode", "FROM busybox\nCOPY --chmod=u:x f /\n", Options{}, "invalid chmod parameter: 'u:x'. it should be octal string and between 0 and 07777, or as u=rwX,go-w"},
		{"git", "FROM busybox\nADD https://git.example/x.git#v1 /x\n", Options{}, "git repositories are no source for ADD here; clone it beside the Dockerfile, or ADD the archive that its server offers with --unpack"},
		{"checksum-of-a-file", "FROM busybox\nADD --checksum=sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 f /\n", Options{}, "checksum can't be specified for non-HTTP(S) sources"},
		{"privileged-step", "FROM busybox\nRUN --security=insecure true\n", Options{}, "RUN --security=insecure is not supported: a build gets no privileges; leave it out"},
		{"no-such-base", "FROM nothing\n", Options{}, "No such image: nothing:latest"},
		{"no-such-target", "FROM busybox\n", Options{Target: "x"}, "failed to reach build target x in Dockerfile"},
		{"no-such-dockerfile", "FROM busybox\n", Options{Dockerfile: "other"}, "Cannot locate specified Dockerfile: other"},
		{"nothing-built", "FROM scratch\n", Options{}, "No image was generated. Is your Dockerfile empty?"},
		{"file-as-directory", "FROM busybox\nCOPY f /etc/passwd/\n", Options{}, "cannot copy to non-directory: /etc/passwd/"},
		{"directory-onto-file", "FROM busybox\nCOPY d /etc/passwd\n", Options{}, "COPY failed: cannot copy to non-directory: /etc/passwd"},
		{"below-a-file", "FROM busybox\nCOPY f /etc/passwd/x\n", Options{}, "cannot copy to non-directory: /etc/passwd"},
		{"workdir-below-a-file", "FROM busybox\nWORKDIR /etc/passwd/x\n", Options{}, "Cannot mkdir: /etc/passwd/x is not a directory"},
		{"workdir-on-a-file", "FROM busybox\nWORKDIR /etc/passwd\n", Options{}, "Cannot mkdir: /etc/passwd is not a directory"},
		{"unknown-signal", "FROM busybox\nSTOPSIGNAL NOPE\n", Options{}, "invalid signal: NOPE"},
	}
	b := newBench(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b.t = t
			_, out, err := b.build(tt.o, files{"Dockerfile": tt.dockerfile, "f": "f", "d/f": "f", "secret2": "2", "secret": "s", ".dockerignore": "secret\n"})
			if err == nil || err.Error() != tt.want {
				t.Errorf("Build = %v\nwant    %s\n%s", err, tt.want, out)
			}
		})
	}
}

func TestContextMayBeADockerfileAlone(t *testing.T) {
	b := newBench(t)
	id, err := Build(t.Context(), Deps{Store: b.s, Runner: b.runner}, Options{}, strings.NewReader("FROM busybox\nRUN echo hi > /hi\n"), Output{Stdout: io.Discard, Stderr: io.Discard})
	must(t, err)
	img, err := b.s.Image(id)
	must(t, err)
	b.has(img, files{"hi": "hi\n"})
}

func TestCacheFromStandsInForABuildElsewhere(t *testing.T) {
	base := testenv.BusyboxTar(t)
	b := benchOn(t, base)
	f := files{"Dockerfile": "FROM busybox\nRUN echo a > /a\nENV X=y\nRUN echo b > /b\n"}
	img, _ := b.mustBuild(Options{Tags: []oci.Reference{ref(t, "app")}}, f)
	// As if it had been pulled: no parents.
	elsewhere := benchOn(t, base)
	var chain oci.ChainID
	for _, d := range img.Config.RootFS.DiffIDs {
		from := oci.Chain(chain, oci.DiffID(d))
		_, err := elsewhere.s.AddPacked(t.Context(), chain, func(w io.Writer) error { return b.s.LayerTar(t.Context(), from, w) })
		must(t, err)
		chain = from
	}
	id, err := elsewhere.s.PutImage(t.Context(), img.Raw, "")
	must(t, err)
	must(t, elsewhere.s.Tag(id, ref(t, "app")))
	_, out := elsewhere.mustBuild(Options{CacheFrom: []string{"app"}}, f)
	if n := strings.Count(out, "Using cache"); n != 3 || elsewhere.runner.runs != 0 {
		t.Errorf("%d instructions come from the cache, %d commands were run; want 3 and 0:\n%s", n, elsewhere.runner.runs, out)
	}
}

func TestCancelledBuildLeavesNothing(t *testing.T) {
	b := newBench(t)
	before, err := b.s.Usage()
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	f := files{"Dockerfile": "FROM busybox\nRUN echo started; sleep 100\n", "big": strings.Repeat("x", 1<<20)}
	_, err = Build(ctx, Deps{Store: b.s, Runner: b.runner}, Options{}, bytes.NewReader(f.tar(t)), Output{Stdout: onWrite(func(p []byte) {
		if bytes.Contains(p, []byte("started")) {
			cancel()
		}
	}), Stderr: io.Discard})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Build = %v, want it cancelled", err)
	}
	after, err := b.s.Usage()
	must(t, err)
	if before != after {
		t.Errorf("usage is %d after the build, %d before", after, before)
	}
}

type onWrite func([]byte)

func (f onWrite) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}

func TestChangeAppliesToAConfiguration(t *testing.T) {
	var c, err = Change(newBenchConfig(), []string{`CMD ["a"]`, "ENV X=1 Y=$X", "EXPOSE 80", "WORKDIR sub", "LABEL a=b"})
	must(t, err)
	if !slices.Equal(c.Cmd, []string{"a"}) || !slices.Equal(c.Env, []string{"X=1", "Y="}) || c.WorkingDir != "/w/sub" || c.Labels["a"] != "b" {
		t.Errorf("Change gives %+v", c)
	}
	if _, err := Change(c, []string{"RUN x"}); !errdef.Is(err, errdef.Invalid) || err.Error() != "RUN is not a valid change command" {
		t.Errorf("Change with RUN = %v", err)
	}
}

func newBenchConfig() (c dockerspec.DockerOCIImageConfig) {
	c.WorkingDir = "/w"
	return c
}

func FuzzPlan(f *testing.F) {
	f.Add("FROM a\nRUN <<E\nx\nE\nCOPY --from=0 a b\n")
	f.Add("ARG A=1\nFROM $A AS b\nHEALTHCHECK NONE\nEXPOSE 1-2\n")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parsePlan([]byte(text))
		if err != nil {
			return
		}
		if err := p.prepare(Options{Labels: map[string]string{"a": "b"}}); err == nil && p.steps() == 0 {
			t.Errorf("a plan of no steps from %q", text)
		}
		Change(dockerspec.DockerOCIImageConfig{}, []string{text})
	})
}
