package bootconfig

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/minke-os/minke/internal/durable"
	"github.com/minke-os/minke/internal/errdef"
)

// A Backend is one place on the boot partition where a host keeps settings. Its
// settings have the names of device variables after its prefix, and are read
// by what boots the host: a change needs a reboot. What it was not asked about
// stays as it is, comments included.
type Backend struct {
	Prefix string // HOST_CONFIG_
	path   string
	large  bool // too large to be told to a server
	// read are the settings that a file's text makes.
	read func(text string) map[string]string
	// edit gives a file's text other settings; those in gone get the host's
	// default. It must give the same text when it is done again.
	edit func(text string, want map[string]string, gone []string) (string, error)
}

// Current are the settings that the host has and a server may know.
func (b Backend) Current() (map[string]string, error) {
	if b.large {
		return nil, nil
	}
	text, err := b.text()
	return b.read(text), err
}

func (b Backend) text() (string, error) {
	data, err := os.ReadFile(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(data), err
}

// Facts are what decides which places a host has.
type Facts struct {
	Dir        string // the boot partition
	DeviceType string
	MetaBalena string // META_BALENA_VERSION of os-release, such as 2.115.1
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
	return append(out, splash(filepath.Join(f.Dir, "splash")))
}

// Set gives the host other settings, and reports whether it must reboot. An
// error leaves all as it was.
func (b Backend) Set(want map[string]string, gone []string) (reboot bool, err error) {
	for k, v := range want {
		if strings.ContainsAny(k+v, "\r\n") {
			return false, errdef.Invalid.Errorf("%s%s: its value has more than one line", b.Prefix, k)
		}
	}
	had, err := b.text()
	if err != nil {
		return false, err
	}
	text, err := b.edit(had, want, gone)
	if err != nil || maps.Equal(b.read(text), b.read(had)) {
		return false, err // only the form would change
	}
	if err := durable.WriteFile(b.path, []byte(text), 0o644); err != nil {
		return false, err
	}
	// FAT on a worn card: what cannot be read back is not worth a reboot, which
	// would be the first of many.
	again, err := b.text()
	if err == nil && again != text {
		err = errdef.Unavailable.Errorf("%s does not keep what is written to it; is the medium worn out?", b.path)
	}
	return err == nil, err
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
