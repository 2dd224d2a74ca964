// Package overlay makes overlay mounts as file descriptors.
//
// A mount made here is detached: it is in no mount namespace and has no path,
// it disappears when its last file descriptor and its last user are gone, and
// so nothing can be left behind by a crash. The container's init moves it into
// its own mount namespace; the engine reads through it by way of the
// descriptor.
//
// Facts that bite, each with a test in package store: index must be off, else a
// write goes through to every hard link of a shared object; with metacopy on a
// file in the upper directory may hold metadata alone, so read through the
// mount and never from the upper directory.
package overlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A Mount describes an overlay. The zero Upper makes it read-only.
type Mount struct {
	Lower []string `json:"lower"`          // top first
	Data  []string `json:"data,omitempty"` // data-only layers that metadata inodes point into; need Linux 6.5
	Upper string   `json:"upper,omitempty"`
	Work  string   `json:"work,omitempty"`

	// Volatile skips every sync. The upper directory is useless after a
	// crash, and the kernel refuses to mount it again: for containers that
	// are removed when they end.
	Volatile bool `json:"volatile,omitempty"`
}

// Open makes the mount. Access files below the returned directory with
// os.OpenRoot on its /proc/self/fd path, or *at calls. Close it when done.
func (m Mount) Open() (*os.File, error) {
	if len(m.Lower) == 0 {
		return nil, errors.New("overlay mount: no lower directory")
	}
	f, err := m.open()
	if errors.Is(err, unix.EINVAL) {
		f, err = m.mountAsString()
	}
	if err != nil {
		return nil, fmt.Errorf("overlay mount: %w", err)
	}
	return f, nil
}

// open gives the layers one by one, which Linux 6.7 and newer take.
func (m Mount) open() (*os.File, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fs)
	for _, o := range m.options(true) {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return nil, fmt.Errorf("%s=%s: %w%s", o[0], o[1], err, kernelLog(fs))
		}
	}
	if m.Volatile {
		if err := unix.FsconfigSetFlag(fs, "volatile"); err != nil {
			return nil, fmt.Errorf("volatile: %w", err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("%w%s", err, kernelLog(fs))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "overlay"), nil
}

// Options are the mount as options of mount(8), for somebody else to make it.
func (m Mount) Options() (words []string) {
	for _, o := range m.options(canAppend()) {
		words = append(words, o[0]+"="+o[1])
	}
	return words
}

// canAppend reports whether layers may be given one by one (Linux 6.7). Before
// 6.5 the kernel looks at options only when it mounts, so it takes any here.
var canAppend = sync.OnceValue(func() bool {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fs)
	takesAny := unix.FsconfigSetString(fs, "no-such-option", "") == nil
	return !takesAny && unix.FsconfigSetString(fs, "lowerdir+", "/") == nil
})

func (m Mount) options(appending bool) [][2]string {
	o := m.settings()
	if appending {
		for _, l := range m.Lower {
			o = append(o, [2]string{"lowerdir+", l})
		}
		for _, d := range m.Data {
			o = append(o, [2]string{"datadir+", d})
		}
	} else {
		lower := strings.Join(escaped(m.Lower), ":")
		for _, d := range escaped(m.Data) {
			lower += "::" + d
		}
		o = append(o, [2]string{"lowerdir", lower})
	}
	if m.Upper != "" {
		o = append(o, [2]string{"upperdir", m.Upper}, [2]string{"workdir", m.Work})
	}
	return o
}

// settings are what is not a directory.
func (m Mount) settings() [][2]string {
	if len(m.Data) > 0 {
		return [][2]string{{"index", "off"}, {"metacopy", "on"}, {"redirect_dir", "on"}}
	}
	return [][2]string{{"index", "off"}, {"metacopy", "off"}}
}

// Parse is the Mount whose Options these are.
func Parse(options []string) (m Mount) {
	for _, o := range options {
		switch key, value, _ := strings.Cut(o, "="); key {
		case "lowerdir+":
			m.Lower = append(m.Lower, value)
		case "datadir+":
			m.Data = append(m.Data, value)
		case "lowerdir":
			parts := strings.Split(value, "::")
			m.Lower = strings.Split(parts[0], ":")
			m.Data = append(m.Data, parts[1:]...)
		case "upperdir":
			m.Upper = value
		case "workdir":
			m.Work = value
		}
	}
	return m
}

func escaped(paths []string) []string {
	r := strings.NewReplacer(`\`, `\\`, ":", `\:`)
	out := make([]string, len(paths))
	for i, p := range paths {
		out[i] = r.Replace(p)
	}
	return out
}

// kernelLog is what the kernel said about a failed mount, as ": text".
func kernelLog(fs int) string {
	buf := make([]byte, 1024)
	var sb strings.Builder
	for {
		n, err := unix.Read(fs, buf)
		if err != nil || n <= 0 {
			return sb.String()
		}
		sb.WriteString(": " + strings.TrimSpace(strings.TrimLeft(string(buf[:n]), "ewi ")))
	}
}

// ProbeData reports whether file systems below dir can carry data-only layers
// (Linux 6.5): it mounts one and reads through a metadata inode. An error says
// what is missing.
func ProbeData(dir string) error {
	tmp, err := os.MkdirTemp(dir, "probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	const content = "x"
	for _, d := range []string{"data", "lower", "lower2"} {
		if err := os.Mkdir(filepath.Join(tmp, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(tmp, "data", "object"), []byte(content), 0o600); err != nil {
		return err
	}
	if err := WriteMeta(filepath.Join(tmp, "lower", "file"), "/object", int64(len(content))); err != nil {
		return err
	}
	m := Mount{Lower: []string{filepath.Join(tmp, "lower"), filepath.Join(tmp, "lower2")}, Data: []string{filepath.Join(tmp, "data")}}
	f, err := m.Open()
	if err != nil {
		return err
	}
	defer f.Close()
	fd, err := unix.Openat(int(f.Fd()), "file", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	buf := make([]byte, 2)
	if n, err := unix.Read(fd, buf); err != nil || string(buf[:n]) != content {
		return fmt.Errorf("read through a metadata inode: %q, %v", buf[:max(n, 0)], err)
	}
	return nil
}

// WriteMeta creates the metadata inode path: a file of the given size without
// content, whose bytes the kernel takes from target in a data-only layer.
// Owner, mode, times and other attributes are the caller's to set.
func WriteMeta(path, target string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	if err := unix.Fsetxattr(int(f.Fd()), "trusted.overlay.redirect", []byte(target), 0); err != nil {
		return &os.PathError{Op: "setxattr trusted.overlay.redirect", Path: path, Err: err}
	}
	if err := unix.Fsetxattr(int(f.Fd()), "trusted.overlay.metacopy", nil, 0); err != nil {
		return &os.PathError{Op: "setxattr trusted.overlay.metacopy", Path: path, Err: err}
	}
	return nil
}

// Path is a name by which this process can reach the mount's root.
func Path(mount *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", mount.Fd()) }
