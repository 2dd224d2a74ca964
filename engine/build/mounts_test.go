package build

import (
	"os"
	"path"
	"reflect"
	"strings"
	"testing"

	"github.com/minke-os/minke/engine/build/dockerfile"
)

func TestRunMountsAreReadAsBuildKitDoes(t *testing.T) {
	b := newBench(t)
	b.mustBuild(Options{Secrets: map[string][]byte{"s": []byte("v"), "dir/e": []byte("w")}}, files{"Dockerfile": `FROM busybox AS one
RUN mkdir /out
FROM busybox
ARG T=/t
WORKDIR /w
RUN --mount=type=cache,target=c --mount=type=cache,id=i,target=/c2,sharing=locked,mode=0700,uid=1,gid=2,ro \
    --mount=type=tmpfs,target=$T,size=1k --mount=type=bind,target=/b,rw --mount=from=one,source=/out,dst=/o \
    --mount=type=secret,id=s --mount=type=secret,src=s,target=rel,mode=0444 --mount=type=secret,id=dir/e,env=E --mount=type=secret,id=none --mount=type=ssh true
`})
	got := b.runner.spec.Mounts
	for i, m := range got { // chains are hashes of no interest here
		if (m.Type == "bind") != (m.Layers != "") {
			t.Errorf("mount %d (%s) shows layers %q", i, m.Type, m.Layers)
		}
		got[i].Layers = ""
	}
	want := []RunMount{
		{Type: "cache", Target: "/w/c", CacheID: "c", Mode: 0o755},
		{Type: "cache", Target: "/c2", CacheID: "i", Sharing: dockerfile.Locked, Mode: 0o700, UID: 1, GID: 2, ReadOnly: true},
		{Type: "tmpfs", Target: "/t", Size: 1024},
		{Type: "bind", Target: "/b", Path: "/"},
		{Type: "bind", Target: "/o", Path: "/out", ReadOnly: true},
		{Type: "secret", Target: "/run/secrets/s", ReadOnly: true, Mode: 0o400, Secret: []byte("v")},
		{Type: "secret", Target: "/w/rel", ReadOnly: true, Mode: 0o444, Secret: []byte("v")},
		{Type: "secret", Env: "E", ReadOnly: true, Mode: 0o400, Secret: []byte("w")},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("mounts = %+v\nwant     %+v", got, want)
	}
}

func TestCacheDependsOnWhatIsBound(t *testing.T) {
	b := newBench(t)
	f := files{"in/a": "1", "out": "1", "in/ignored": "1", ".dockerignore": "**/ignored\n",
		"Dockerfile": "FROM busybox\nRUN --mount=source=in,target=/in --mount=type=cache,target=/c --mount=type=secret,id=s true\n"}
	o := Options{Secrets: map[string][]byte{"s": []byte("1")}}
	tests := []struct {
		name   string
		change func()
		hit    bool
	}{
		{"first-build", func() {}, false},
		{"nothing-changed", func() {}, true},
		{"file-beside-it", func() { f["out"] = "2" }, true},
		{"ignored-file", func() { f["in/ignored"] = "2" }, true},
		{"other-secret", func() { o.Secrets["s"] = []byte("2") }, true},
		{"bound-file", func() { f["in/a"] = "2" }, false},
		{"no-secret", func() { o.Secrets = nil }, false},
	}
	for _, tt := range tests {
		tt.change()
		_, out := b.mustBuild(o, f)
		if got := strings.Contains(out, "Using cache"); got != tt.hit {
			t.Errorf("%s: hit is %v, want %v:\n%s", tt.name, got, tt.hit, out)
		}
	}
}

func TestBoundContextHidesWhatIsIgnored(t *testing.T) {
	b := newBench(t)
	b.runner.look = func(spec RunSpec) {
		s, err := openSource(b.s, spec.Mounts[0].Layers)
		must(t, err)
		defer s.close()
		for name, want := range map[string]bool{"a": true, "dir/b": true, "dir/secret": false} {
			if _, err := s.root.Stat(name); (err == nil) != want {
				t.Errorf("%s: %v, want it there: %v", path.Join("/in", name), err, want)
			}
		}
		if fi, err := s.root.Stat("dir"); err != nil || fi.Mode() != os.ModeDir|0o755 {
			t.Errorf("mode of a bound directory = %v, %v", fi.Mode(), err)
		}
	}
	b.mustBuild(Options{}, files{"a": "1", "dir/secret": "1", "dir/b": "2", ".dockerignore": "dir/secret\n", "Dockerfile": "FROM busybox\nRUN --mount=target=/in true\n"})
}
