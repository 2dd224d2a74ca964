package store

import (
	"reflect"
	"strings"
	"testing"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/oci"
)

func TestRemoveFollowsDockersRules(t *testing.T) {
	testenv.NeedRoot(t)
	digest := "app@" + oci.Prefix + strings.Repeat("cd", 32)
	tests := []struct {
		name    string
		tags    []string
		child   bool // another image was built on it
		running string
		stopped string
		remove  string // "ID" for the image's
		force   bool
		want    []string // "-x" untagged, "ID" deleted
		err     string
	}{
		{name: "last-name-takes-the-image", tags: []string{"app:1"}, remove: "app:1", want: []string{"-app:1", "ID"}},
		{name: "first-of-two-names-is-untagged", tags: []string{"app:1", "app:2"}, remove: "app:1", want: []string{"-app:1"}},
		{name: "digest-goes-with-the-last-tag-of-its-repository", tags: []string{"app:1", digest}, remove: "app:1", want: []string{"-app:1", "-" + digest, "ID"}},
		{name: "tag-of-another-repository-keeps-the-image", tags: []string{"app:1", digest, "web:1"}, remove: "app:1", want: []string{"-app:1", "-" + digest}},
		{name: "digest-alone-is-untagged", tags: []string{"app:1", digest}, remove: digest, want: []string{"-" + digest}},
		{name: "id-takes-its-only-name-along", tags: []string{"app:1", digest}, remove: "ID", want: []string{"-app:1", "-" + digest, "ID"}},
		{name: "id-with-two-tags-needs-force", tags: []string{"app:1", "app:2"}, remove: "ID",
			err: "conflict: unable to delete SHORT (must be forced) - image is referenced in multiple repositories"},
		{name: "forced-id-takes-all-names", tags: []string{"app:1", "web:2"}, remove: "ID", force: true, want: []string{"-app:1", "-web:2", "ID"}},
		{name: "stopped-container-keeps-the-last-name", tags: []string{"app:1"}, stopped: "c1", remove: "app:1",
			err: `conflict: unable to remove repository reference "app:1" (must force) - container c1 is using its referenced image SHORT`},
		{name: "stopped-container-needs-force", tags: []string{"app:1"}, stopped: "c1", remove: "ID",
			err: "conflict: unable to delete SHORT (must be forced) - image is being used by stopped container c1"},
		{name: "force-overcomes-a-stopped-container", tags: []string{"app:1"}, stopped: "c1", remove: "ID", force: true, want: []string{"-app:1", "ID"}},
		{name: "nothing-overcomes-a-running-container", tags: []string{"app:1"}, running: "c1", remove: "ID", force: true,
			err: "conflict: unable to delete SHORT (cannot be forced) - image is being used by running container c1"},
		{name: "forced-name-of-a-running-container-is-untagged", tags: []string{"app:1"}, running: "c1", remove: "app:1", force: true, want: []string{"-app:1"}},
		{name: "other-name-of-a-running-container-is-untagged", tags: []string{"app:1", "app:2"}, running: "c1", remove: "app:1", want: []string{"-app:1"}},
		{name: "child-keeps-its-parent", child: true, remove: "ID", force: true,
			err: "conflict: unable to delete SHORT (cannot be forced) - image has dependent child images"},
		{name: "no-such-name", remove: "nothing", err: "No such image: nothing:latest"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := openAt(t, testenv.DiskDir(t), Options{})
			id := putImage(t, s, "image", "")
			for _, tag := range tt.tags {
				must(t, s.Tag(id, ref(t, tag)))
			}
			if tt.child {
				must(t, s.Tag(putImage(t, s, "child", id), ref(t, "child")))
			}
			in := func(string) string { return strings.NewReplacer("SHORT", id.Short(), "ID", string(id)).Replace(tt.err) }
			name := strings.Replace(tt.remove, "ID", string(id), 1)
			got, err := s.Remove(name, RemoveOptions{Force: tt.force}, func(oci.ImageID) (string, bool) {
				return tt.running + tt.stopped, tt.running != ""
			})
			if tt.err != "" {
				if err == nil || err.Error() != in(tt.err) {
					t.Errorf("Remove(%q, %v) = %v, %v; want error %q", tt.remove, tt.force, got, err, in(tt.err))
				}
				return
			}
			var want []Removed
			for _, w := range tt.want {
				if name, ok := strings.CutPrefix(w, "-"); ok {
					want = append(want, Removed{Untagged: name})
				} else {
					want = append(want, Removed{Deleted: string(id)})
				}
			}
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("Remove(%q, %v) = %v, %v; want %v", tt.remove, tt.force, got, err, want)
			}
		})
	}
}

func TestRemoveTakesUntaggedParentsAlong(t *testing.T) {
	testenv.NeedRoot(t)
	s := openAt(t, testenv.DiskDir(t), Options{})
	base := putImage(t, s, "base", "")
	must(t, s.Tag(base, ref(t, "base")))
	step := putImage(t, s, "step", base)
	top := putImage(t, s, "top", step)
	must(t, s.Tag(top, ref(t, "app")))
	got, err := s.Remove("app", RemoveOptions{}, nobody)
	want := []Removed{{Untagged: "app:latest"}, {Deleted: string(top)}, {Deleted: string(step)}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("Remove(app) = %v, %v; want %v", got, err, want)
	}
}

func TestRemoveCanKeepUntaggedParents(t *testing.T) {
	testenv.NeedRoot(t)
	s := openAt(t, testenv.DiskDir(t), Options{})
	step := putImage(t, s, "step", "")
	top := putImage(t, s, "top", step)
	must(t, s.Tag(top, ref(t, "app")))
	got, err := s.Remove("app", RemoveOptions{KeepParents: true}, nobody)
	want := []Removed{{Untagged: "app:latest"}, {Deleted: string(top)}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("Remove(app) = %v, %v; want %v", got, err, want)
	}
}

func TestManifestsGoWithTheirImage(t *testing.T) {
	testenv.NeedRoot(t)
	base := testenv.DiskDir(t)
	s := openAt(t, base, Options{})
	id := putImage(t, s, "image", "")
	raw := []byte(`{"schemaVersion":2}`)
	m := Manifest{oci.FromBytes(raw), "application/json", raw}
	must(t, s.Tag(id, ref(t, "app")), s.PutManifest(id, m))
	if got, err := s.Manifests(id); err != nil || !reflect.DeepEqual(got, []Manifest{m}) {
		t.Errorf("Manifests = %v, %v; want the one that was put", got, err)
	}
	if got, err := s.ImageOf(m.Digest); err != nil || got != id {
		t.Errorf("ImageOf = %s, %v; want %s", got, err, id)
	}
	_, err := s.Remove("app", RemoveOptions{}, nobody)
	must(t, err)
	if got, err := s.ImageOf(m.Digest); !errdef.Is(err, errdef.NotFound) {
		t.Errorf("ImageOf a manifest of a removed image = %s, %v", got, err)
	}
	if err := s.PutManifest(id, m); !errdef.Is(err, errdef.NotFound) {
		t.Errorf("PutManifest for an image that is gone: %v", err)
	}
}

func TestResolveWantsAUniquePrefix(t *testing.T) {
	testenv.NeedRoot(t)
	s := openAt(t, testenv.DiskDir(t), Options{})
	first := map[byte]bool{}
	for i := range 17 { // of 17 IDs two begin with the same digit
		id := putImage(t, s, strings.Repeat("x", i), "")
		d := id.Hex()[0]
		if first[d] {
			if got, _, err := s.Resolve(string(d)); !errdef.Is(err, errdef.Invalid) {
				t.Errorf("Resolve(%q) = %s, %v; want it invalid, as two IDs begin so", d, got, err)
			}
			return
		}
		first[d] = true
	}
}

func TestPutImageNeedsItsLayers(t *testing.T) {
	testenv.NeedRoot(t)
	s := openAt(t, testenv.DiskDir(t), Options{})
	config := `{"rootfs":{"type":"layers","diff_ids":["sha256:` + strings.Repeat("ab", 32) + `"]}}`
	if id, err := s.PutImage(t.Context(), []byte(config), ""); !errdef.Is(err, errdef.NotFound) {
		t.Errorf("PutImage with a layer that is missing = %s, %v; want not found", id, err)
	}
	if id, err := s.PutImage(t.Context(), []byte("{"), ""); !errdef.Is(err, errdef.Invalid) {
		t.Errorf("PutImage of broken JSON = %s, %v; want invalid", id, err)
	}
}
