package oci

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
)

// A Platform says what a program was built for, in Go's and OCI's words.
type Platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
}

// ParsePlatform reads "linux/arm64", "arm64", "linux/arm/v7".
func ParsePlatform(s string) (Platform, error) {
	parts := strings.Split(strings.ToLower(s), "/")
	if len(parts) == 1 {
		parts = []string{"linux", parts[0]}
	}
	if len(parts) > 3 || parts[0] == "" || parts[1] == "" {
		return Platform{}, fmt.Errorf("invalid platform %q: want os/architecture[/variant]", s)
	}
	p := Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p.normalized(), nil
}

// Host is the platform this program was built for.
func Host() Platform {
	return Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}.normalized()
}

func (p Platform) normalized() Platform {
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "aarch64":
		p.Architecture = "arm64"
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	case "i386", "i686":
		p.Architecture = "386"
	}
	if p.Architecture == "arm64" && p.Variant == "v8" {
		p.Variant = ""
	}
	return p
}

// String is the form ParsePlatform reads.
func (p Platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// Runs lists what a platform can run, best first.
func (p Platform) Runs() []Platform {
	p = p.Canonical()
	out := []Platform{p}
	add := func(arch string, variants ...string) {
		for _, v := range variants {
			out = append(out, Platform{OS: p.OS, Architecture: arch, Variant: v})
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

// Canonical drops the variants that go without saying and adds the one that
// does not, so that platforms can be compared.
func (p Platform) Canonical() Platform {
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
