package build

import (
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
