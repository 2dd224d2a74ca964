package contract

import (
	"regexp"
	"strings"
)

// Facts are what Offers is made of, as the device's files have it.
type Facts struct {
	DeviceType, Arch           string
	Supervisor                 string // version
	OS, OSVersion, OSVersionID string // ID, VERSION and VERSION_ID of os-release
	Kernel, KernelRelease      string // such as Linux and 6.1.77-v8
}

var (
	kernelVersion = regexp.MustCompile(`^[0-9]+(\.[0-9]+){0,2}`)
	l4tVersion    = regexp.MustCompile(`-l4t-r([0-9]+(?:\.[0-9]+){1,2})`)
)

// Offers is what a device has; what its files do not tell is left out.
func Offers(f Facts) []Offer {
	var out []Offer
	add := func(known string, o Offer) {
		if known != "" {
			out = append(out, o)
		}
	}
	add(f.DeviceType, Offer{DeviceType, f.DeviceType, ""})
	add(f.Arch, Offer{Arch, f.Arch, ""})
	add(f.Supervisor, Offer{Supervisor, "", f.Supervisor})
	version := f.OSVersion
	if !Satisfies(version, "*") { // Debian's is for people: 13 (trixie)
		version = f.OSVersionID
	}
	add(f.OS, Offer{OS, f.OS, version})
	add(f.KernelRelease, Offer{Kernel, strings.ToLower(f.Kernel), kernelVersion.FindString(f.KernelRelease)})
	if m := l4tVersion.FindStringSubmatch(f.KernelRelease); m != nil {
		out = append(out, Offer{L4T, "", m[1]})
	}
	return out
}
