package registry

import (
	"slices"
	"strings"

	"github.com/minke-os/minke/oci"
)

// choose picks the manifest that runs on a platform, and of several the one
// made for the newest processor that it has.
func choose(all []descriptor, p oci.Platform) (descriptor, bool) {
	for _, want := range runs(p) {
		for _, d := range all {
			if d.Platform != nil && canonical(*d.Platform) == want {
				return d, true
			}
		}
	}
	if len(all) == 1 && all[0].Platform == nil {
		return all[0], true // somebody's index of one image
	}
	return descriptor{}, false
}

// runs lists what a platform can run, best first.
func runs(p oci.Platform) []oci.Platform {
	p = canonical(p)
	out := []oci.Platform{p}
	add := func(arch string, variants ...string) {
		for _, v := range variants {
			out = append(out, oci.Platform{OS: p.OS, Architecture: arch, Variant: v})
		}
	}
	switch p.Architecture {
	case "amd64":
		if p.Variant != "" { // v2 runs what needs less
			add("amd64", "")
		}
		add("386", "")
	case "arm64":
		if p.Variant != "" {
			add("arm64", "")
		}
		add("arm", "v8", "v7", "v6", "v5")
	case "arm":
		newestFirst := []string{"v8", "v7", "v6", "v5"}
		if i := slices.Index(newestFirst, p.Variant); i >= 0 {
			add("arm", newestFirst[i+1:]...)
		}
	}
	return out
}

// canonical drops the variants that go without saying and adds the one that
// does not.
func canonical(p oci.Platform) oci.Platform {
	switch {
	case p.Architecture == "arm64" && p.Variant == "v8", p.Architecture == "amd64" && p.Variant == "v1":
		p.Variant = ""
	case p.Architecture == "arm" && p.Variant == "":
		p.Variant = "v7"
	case p.Architecture == "arm" && !strings.HasPrefix(p.Variant, "v"):
		p.Variant = "v" + p.Variant
	}
	return p
}

func listPlatforms(all []descriptor) string {
	var out []string
	for _, d := range all {
		if d.Platform != nil && d.Platform.OS != "unknown" { // attestations
			out = append(out, d.Platform.String())
		}
	}
	return strings.Join(out, ", ")
}
