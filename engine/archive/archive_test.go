package archive

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"go.etcd.io/bbolt"

	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/overlay"
	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/oci"
)

func open(t testing.TB) *store.Store {
	t.Helper()
	testenv.NeedRoot(t)
	dir := testenv.DiskDir(t)
	db, err := bbolt.Open(filepath.Join(dir, "minke.db"), 0o600, nil)
	must(t, err)
	t.Cleanup(func() { db.Close() })
	s, err := store.Open(dir, db, store.Options{})
	must(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A member is a file of a tar; with link set, a symlink.
type member struct{ name, body, link string }

func pack(t testing.TB, members ...member) string {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(m.body))}
		if m.link != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, m.link
		}
		must(t, w.WriteHeader(h))
		_, err := io.WriteString(w, m.body)
		must(t, err)
	}
	must(t, w.Close())
	return buf.String()
}

func gz(t testing.TB, s string) string {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	io.WriteString(w, s)
	must(t, w.Close())
	return buf.String()
}

func zst(t testing.TB, s string) string {
	z, err := zstd.NewWriter(nil)
	must(t, err)
	return string(z.EncodeAll([]byte(s), nil))
}

func digestOf(s string) string { return string(oci.FromBytes([]byte(s))) }
func blobName(s string) string { return "blobs/sha256/" + oci.FromBytes([]byte(s)).Hex() }

func configOf(t testing.TB, layers ...string) string {
	diffs := []string{}
	for _, l := range layers {
		diffs = append(diffs, digestOf(l))
	}
	b, err := json.Marshal(map[string]any{"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"type": "layers", "diff_ids": diffs}})
	must(t, err)
	return string(b)
}

func manifestJSON(t testing.TB, config string, tags []string, layers ...string) string {
	b, err := json.Marshal([]map[string]any{{"Config": config, "RepoTags": tags, "Layers": layers}})
	must(t, err)
	return string(b)
}

var (
	bottom = func(t testing.TB) string { return pack(t, member{"a", "from the bottom", ""}, member{"b", "b", ""}) }
	top    = func(t testing.TB) string { return pack(t, member{"a", "from the top", ""}) }
)

func TestLoadReadsWhatToolsWrite(t *testing.T) {
	b, tp := bottom(t), top(t)
	config := configOf(t, b, tp, b)
	manifest := func(mediaType string, layers ...string) string {
		var descs []string
		for _, l := range layers {
			descs = append(descs, `{"mediaType":"`+mediaType+`","digest":"`+digestOf(l)+`","size":1}`)
		}
		return `{"schemaVersion":2,"config":{"digest":"` + digestOf(config) + `"},"layers":[` + strings.Join(descs, ",") + `]}`
	}
	packed := manifest("application/vnd.oci.image.layer.v1.tar+gzip", gz(t, b), gz(t, tp), gz(t, b))
	index := `{"schemaVersion":2,"manifests":[{"digest":"sha256:` + strings.Repeat("00", 32) + `","platform":{"os":"plan9","architecture":"mips"}},
		{"digest":"` + digestOf(packed) + `","platform":{"os":"linux","architecture":"` + oci.Host().Architecture + `"}}]}`
	name := `"annotations":{"io.containerd.image.name":"docker.io/library/app:1"}`
	docker := pack(t, // as Docker before 25: layers first, repeated ones as links
		member{"111/layer.tar", b, ""}, member{"222/layer.tar", tp, ""}, member{"333/layer.tar", "", "../111/layer.tar"},
		member{"config.json", config, ""},
		member{"manifest.json", manifestJSON(t, "config.json", []string{"app:1"}, "111/layer.tar", "222/layer.tar", "333/layer.tar"), ""})
	tests := []struct {
		name    string
		archive string
	}{
		{"docker-with-the-manifest-last", docker},
		{"docker-gzipped", gz(t, docker)},
		{"docker-in-zstd", zst(t, docker)},
		{"docker-with-compressed-layers", pack(t,
			member{"manifest.json", manifestJSON(t, "./c", []string{"app:1"}, "./1", "2", "1"), ""},
			member{"./c", config, ""}, member{"1", gz(t, b), ""}, member{"2", zst(t, tp), ""})},
		{"oci-layout", pack(t,
			member{blobName(gz(t, b)), gz(t, b), ""}, member{blobName(gz(t, tp)), gz(t, tp), ""},
			member{blobName(config), config, ""}, member{blobName(packed), packed, ""},
			member{"index.json", `{"schemaVersion":2,"manifests":[{"digest":"` + digestOf(packed) + `",` + name + `}]}`, ""})},
		{"oci-layout-with-an-index-of-platforms", pack(t,
			member{"index.json", `{"schemaVersion":2,"manifests":[{"digest":"` + digestOf(index) + `",` + name + `}]}`, ""},
			member{blobName(index), index, ""}, member{blobName(packed), packed, ""}, member{blobName(config), config, ""},
			member{blobName(gz(t, b)), gz(t, b), ""}, member{blobName(gz(t, tp)), gz(t, tp), ""})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			var loaded []string
			err := Load(t.Context(), s, strings.NewReader(tt.archive), LoadOptions{Progress: func(p Progress) {
				if p.Loaded != "" {
					loaded = append(loaded, p.Loaded)
				}
			}})
			must(t, err)
			if !slices.Equal(loaded, []string{"app:1"}) {
				t.Errorf("loaded %q, want app:1", loaded)
			}
			id, _, err := s.Resolve("app:1")
			if want := oci.ImageID(digestOf(config)); err != nil || id != want {
				t.Errorf("Resolve(app:1) = %s, %v; want %s", id, err, want)
			}
			chain := oci.ChainOf([]oci.DiffID{oci.DiffID(digestOf(b)), oci.DiffID(digestOf(tp))})
			if got := readFile(t, s, chain, "a"); got != "from the top" {
				t.Errorf("a = %q in the second layer", got)
			}
			chain = oci.Chain(chain, oci.DiffID(digestOf(b)))
			if got := readFile(t, s, chain, "a"); got != "from the bottom" {
				t.Errorf("a = %q in the third layer", got)
			}
		})
	}
}

func readFile(t *testing.T, s *store.Store, chain oci.ChainID, name string) string {
	t.Helper()
	m, err := s.Mount(chain)
	must(t, err)
	f, err := m.Open()
	must(t, err)
	defer f.Close()
	b, err := os.ReadFile(filepath.Join(overlay.Path(f), name))
	must(t, err)
	return string(b)
}

func TestLoadOfSaveGivesTheSameImages(t *testing.T) {
	a, b := open(t), open(t)
	l1, err := a.AddLayer(t.Context(), "", strings.NewReader(bottom(t)))
	must(t, err)
	l2, err := a.AddLayer(t.Context(), l1.ChainID, strings.NewReader(top(t)))
	must(t, err)
	app, err := a.PutImage(t.Context(), []byte(configOf(t, bottom(t), top(t))), "")
	must(t, err)
	base, err := a.PutImage(t.Context(), []byte(configOf(t, bottom(t))), "")
	must(t, err)
	for name, id := range map[string]oci.ImageID{"app:1": app, "host:5000/x/app:2": app, "base": base} {
		ref, err := oci.ParseReference(name)
		must(t, err)
		must(t, a.Tag(id, ref))
	}
	var archive bytes.Buffer
	must(t, Save(t.Context(), a, &archive, []string{"app:1", "host:5000/x/app:2", base.Short()}))
	saved := archive.String()
	var loaded []string
	must(t, Load(t.Context(), b, &archive, LoadOptions{Progress: func(p Progress) {
		if p.Loaded != "" {
			loaded = append(loaded, p.Loaded)
		}
	}}))
	if want := []string{"app:1", "host:5000/x/app:2", string(base)}; !slices.Equal(loaded, want) {
		t.Errorf("loaded %q, want %q", loaded, want)
	}
	for _, name := range []string{"app:1", "host:5000/x/app:2"} {
		if id, _, err := b.Resolve(name); id != app {
			t.Errorf("Resolve(%s) = %s, %v; want %s", name, id, err, app)
		}
	}
	if _, err := b.Layer(l2.ChainID); err != nil {
		t.Error(err)
	}
	var again bytes.Buffer
	must(t, Save(t.Context(), b, &again, []string{"app:1", "host:5000/x/app:2", base.Short()}))
	if again.String() != saved {
		t.Errorf("saved again, the archive has %d bytes that differ from the %d of the first", again.Len(), len(saved))
	}
}

func TestLoadTakesThePlatformThatIsAskedFor(t *testing.T) {
	b := bottom(t)
	arm := strings.Replace(configOf(t, b), "amd64", "arm64", 1)
	both := pack(t, member{"manifest.json", strings.TrimSuffix(manifestJSON(t, "amd", []string{"amd:1"}, "l"), "]") + "," + strings.TrimPrefix(manifestJSON(t, "arm", []string{"arm:1"}, "l"), "["), ""},
		member{"amd", configOf(t, b), ""}, member{"arm", arm, ""}, member{"l", b, ""})
	s := open(t)
	must(t, Load(t.Context(), s, strings.NewReader(both), LoadOptions{Platform: oci.Platform{OS: "linux", Architecture: "arm64"}}))
	if _, _, err := s.Resolve("arm:1"); err != nil {
		t.Errorf("arm:1: %v, want it loaded", err)
	}
	if id, _, err := s.Resolve("amd:1"); err == nil {
		t.Errorf("amd:1 is %s, want it left out", id)
	}
	err := Load(t.Context(), s, strings.NewReader(both), LoadOptions{Platform: oci.Platform{OS: "linux", Architecture: "riscv64"}})
	if !errdef.Is(err, errdef.NotFound) {
		t.Errorf("Load of a platform that is not there = %v, want not found", err)
	}
}

func TestManifestsThatFitAreSavedAgain(t *testing.T) {
	b := bottom(t)
	config := configOf(t, b)
	manifest := ` {"schemaVersion":2, "annotations":{"odd":"spacing"}, "config":{"digest":"` + digestOf(config) + `","size":1},"layers":[{"digest":"` + digestOf(b) + `"}]}`
	s := open(t)
	must(t, Load(t.Context(), s, strings.NewReader(pack(t, member{blobName(b), b, ""}, member{blobName(config), config, ""}, member{blobName(manifest), manifest, ""},
		member{"index.json", `{"manifests":[{"digest":"` + digestOf(manifest) + `","annotations":{"io.containerd.image.name":"app:1"}}]}`, ""})), LoadOptions{}))
	var out bytes.Buffer
	must(t, Save(t.Context(), s, &out, []string{"app:1"}))
	for tr := tar.NewReader(&out); ; {
		h, err := tr.Next()
		if err != nil {
			t.Fatalf("the archive has no %s: %v", blobName(manifest), err)
		}
		if h.Name == blobName(manifest) {
			return
		}
	}
}

func TestLoadRefusesWhatDoesNotFit(t *testing.T) {
	b := bottom(t)
	tests := []struct {
		name    string
		archive string
		says    string
	}{
		{"not-a-tar", strings.Repeat("not a tar ", 100), "archive"},
		{"no-manifest", pack(t, member{"a", "b", ""}), "neither manifest.json nor index.json"},
		{"no-configuration", pack(t, member{"manifest.json", manifestJSON(t, "c", nil, "l"), ""}), "configuration c is missing"},
		{"no-layer", pack(t, member{"manifest.json", manifestJSON(t, "c", nil, "l"), ""}, member{"c", configOf(t, b), ""}), "layer l is missing"},
		{"another-layer", pack(t, member{"manifest.json", manifestJSON(t, "c", nil, "l"), ""}, member{"c", configOf(t, "other"), ""}, member{"l", b, ""}), "layer l has diff ID"},
		{"too-few-layers", pack(t, member{"manifest.json", manifestJSON(t, "c", nil), ""}, member{"c", configOf(t, b), ""}), "the manifest 0"},
		{"endless-indexes", pack(t, member{"index.json", `{"manifests":[{"digest":"sha256:x"}]}`, ""}, member{"blobs/sha256/x", `{"manifests":[{"digest":"sha256:x"}]}`, ""}), "indexes in indexes"},
		{"damaged-configuration", pack(t, member{"index.json", "{}", ""}, member{blobName("{}"), "{ }", ""}), "the archive is damaged"},
		{"bad-name", pack(t, member{"manifest.json", manifestJSON(t, "c", []string{"UPPER:x y"}, "l"), ""}, member{"c", configOf(t, b), ""}, member{"l", b, ""}), "UPPER"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := Load(t.Context(), open(t), strings.NewReader(tt.archive), LoadOptions{})
			if !errdef.Is(err, errdef.Invalid) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("Load = %v; want it invalid: %s", err, tt.says)
			}
		})
	}
}

func TestImportMakesAnImageOfOneLayer(t *testing.T) {
	s := open(t)
	o := ImportOptions{Config: dockerspec.DockerOCIImageConfig{}, Message: "by hand", Created: time.Unix(1, 0)}
	o.Config.Cmd = []string{"/bin/sh"}
	id, err := Import(t.Context(), s, strings.NewReader(gz(t, bottom(t))), o)
	must(t, err)
	img, err := s.Image(id)
	must(t, err)
	if img.Config.History[0].Comment != "by hand" || img.Config.Config.Cmd[0] != "/bin/sh" || img.Config.Architecture != oci.Host().Architecture {
		t.Errorf("configuration is %s", img.Raw)
	}
	if got := readFile(t, s, oci.ChainID(img.Config.RootFS.DiffIDs[0]), "b"); got != "b" {
		t.Errorf("b = %q", got)
	}
	if _, err := Import(t.Context(), s, strings.NewReader("nothing like a tar"), o); !errdef.Is(err, errdef.Invalid) {
		t.Errorf("Import of text = %v, want it invalid", err)
	}
}

func FuzzPlan(f *testing.F) {
	f.Add([]byte(`[{"Config":"c","RepoTags":["a:1"],"Layers":["l"]}]`), []byte(`{"manifests":[{"digest":"sha256:x"}]}`), []byte(`{"config":{"digest":"sha256:y"},"layers":[]}`))
	f.Fuzz(func(t *testing.T, manifest, index, blob []byte) {
		dockerImages(manifest)
		l := &loading{docs: map[string][]byte{"index.json": index, "blobs/sha256/x": blob, "blobs/sha256/y": blob}}
		if images, err := l.plan(); err == nil {
			for _, img := range images {
				l.config(img)
			}
		}
	})
}
