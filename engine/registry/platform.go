package registry

import (
	"strings"

	"github.com/minke-os/minke/oci"
)

// choose picks the manifest that runs on a platform, and of several the one
// made for the newest processor that it has.
func choose(all []descriptor, p oci.Platform) (descriptor, bool) {
	for _, want := range p.Runs() {
		for _, d := range all {
			if d.Platform != nil && d.Platform.Canonical() == want {
				return d, true
			}
		}
	}
	if len(all) == 1 && all[0].Platform == nil {
		return all[0], true // somebody's index of one image
	}
	return descriptor{}, false
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
