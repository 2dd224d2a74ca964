package contract

import (
	"cmp"

	"github.com/Masterminds/semver/v3"
)

// Satisfies reports whether a version, as systems and kernels write them, is in
// a range of npm's kind: >=2.113, ^1.2, ~1, 1.x, 1.2 - 2.0, several with ||. A
// pre-release is compared like any other version. A range that is none has no
// version.
func Satisfies(v, in string) bool {
	got, err := semver.NewVersion(v)
	if err != nil {
		return false
	}
	want, err := semver.NewConstraint(cmp.Or(in, "*"))
	if err != nil {
		return false
	}
	want.IncludePrerelease = true
	return want.Check(got)
}
