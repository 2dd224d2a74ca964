package build

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/minke-os/minke/oci"
)

func TestCacheFromAllowsOnlyWhatItNames(t *testing.T) {
	b := newBench(t)
	f := files{"Dockerfile": "FROM busybox\nRUN echo a > /a\nENV X=y\nRUN echo b > /b\n"}
	app := []oci.Reference{ref(t, "app")}
	first, _ := b.mustBuild(Options{Tags: app}, f)
	b.mustBuild(Options{Tags: []oci.Reference{ref(t, "other")}}, files{"Dockerfile": "FROM busybox\nRUN echo other\n"})
	for _, tt := range []struct {
		from string
		hits int
	}{{"app", 3}, {"other", 0}, {"not-here", 0}} {
		img, out := b.mustBuild(Options{CacheFrom: []string{tt.from}}, f)
		if n := strings.Count(out, "Using cache"); n != tt.hits || tt.hits == 3 && img.ID != first.ID {
			t.Errorf("with the cache of %s there are %d hits and %s is built, want %d, and %s if all:\n%s", tt.from, n, img.ID, tt.hits, first.ID, out)
		}
	}
}

func TestBaseIsFetchedIfItIsForAnotherPlatformOrOutOfDate(t *testing.T) {
	b := newBench(t)
	arm := oci.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}
	for _, tt := range []struct {
		name       string
		o          Options
		dockerfile string
		want       []oci.Platform
	}{
		{"here", Options{}, "FROM busybox\n", nil},
		{"host's-platform", Options{Platform: oci.Host()}, "FROM busybox\n", nil},
		{"pull", Options{Pull: true}, "FROM busybox\n", []oci.Platform{oci.Host()}},
		{"other-platform", Options{Platform: arm}, "FROM busybox\n", []oci.Platform{arm}},
		{"other-platform-of-a-stage", Options{}, "FROM --platform=linux/arm/v7 busybox\n", []oci.Platform{arm}},
		{"missing", Options{}, "FROM new\n", []oci.Platform{oci.Host()}},
	} {
		var pulled []oci.Platform
		pull := func(_ context.Context, _ oci.Reference, p oci.Platform, _ io.Writer) (oci.ImageID, error) {
			pulled = append(pulled, p)
			id, _, err := b.s.Resolve("busybox")
			return id, err
		}
		_, err := Build(t.Context(), Deps{Store: b.s, Runner: b.runner, Pull: pull}, tt.o, strings.NewReader(tt.dockerfile), Output{Stdout: io.Discard, Stderr: io.Discard})
		if err != nil || !slices.Equal(pulled, tt.want) {
			t.Errorf("%s: %v, pulled %v, want %v", tt.name, err, pulled, tt.want)
		}
	}
}
