package bootconfig

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/minke-os/minke/internal/errdef"
)

// A Backend is one place where a host keeps settings of how it boots. They have
// the names of device variables after its prefix, and are read by what boots the
// host: a change needs a reboot. What it was not asked about stays as it is,
// comments included.
type Backend struct {
	Prefix string // HOST_CONFIG_
	place  place
}

// A place is what a Backend reads and changes, with settings as Backend has them.
type place interface {
	current() (map[string]string, error)
	set(want map[string]string, gone []string) (reboot bool, err error)
}

// Current are the settings that the host has and a server may know.
func (b Backend) Current() (map[string]string, error) { return b.place.current() }

// Set gives the host other settings, those in gone the host's default, and
// reports whether it must reboot. An error leaves all as it was, but for a medium
// that cannot be written. Done again, it does nothing.
func (b Backend) Set(want map[string]string, gone []string) (reboot bool, err error) {
	for k, v := range want {
		if strings.ContainsAny(k+v, "\r\n") {
			return false, errdef.Invalid.Errorf("%s%s: its value has more than one line", b.Prefix, k)
		}
	}
	return b.place.set(want, gone)
}

// Facts are what decides which places a host has.
type Facts struct {
	Dir        string // the boot partition
	DeviceType string
	MetaBalena string // META_BALENA_VERSION of os-release, such as 2.115.1
	Root       string // of the host's /boot, /dev and /sys; "" but in tests
}

// Backends are those of this host.
func Backends(f Facts) []Backend {
	var out []Backend
	switch uEnv := filepath.Join(f.Dir, "extra_uEnv.txt"); {
	case f.Dir == "":
		return nil
	case readsConfigTxt(f.DeviceType):
		out = append(out, configTxt(filepath.Join(f.Dir, "config.txt"), f.DeviceType))
	case readsUEnv(f.DeviceType) && exists(uEnv):
		out = append(out, extraUEnv(uEnv))
	case bootsExtlinux(f):
		out = append(out, extlinux(filepath.Join(f.Dir, "extlinux", "extlinux.conf")))
	}
	if hasODMData(f.DeviceType) {
		out = append(out, odmData(f.Root))
	}
	if takesTables(f.DeviceType) {
		out = append(out, configFS(f))
	}
	return append(out, splash(filepath.Join(f.Dir, "splash")))
}

// only refuses settings that a backend does not have.
func only(prefix string, want map[string]string, name string) error {
	for _, key := range sorted(want) {
		if key != name {
			return errdef.Unsupported.Errorf("%s%s: there is only %[1]s%[3]s", prefix, key, name)
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// list reads a variable that may stand for several lines: "a","b" or one value
// without quotes.
func list(value string) ([]string, error) {
	if !strings.HasPrefix(value, `"`) {
		return []string{value}, nil
	}
	var out []string
	if err := json.Unmarshal([]byte("["+value+"]"), &out); err != nil {
		return nil, errdef.Invalid.Errorf(`want "one","two", not %s`, value)
	}
	return out, nil
}

// quoted writes such a variable.
func quoted(values []string) string {
	out := make([]string, len(values))
	for i, v := range values {
		b, _ := json.Marshal(v) // a string
		out[i] = string(b)
	}
	return strings.Join(out, ",")
}

func sorted(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
