// Package device finds the device nodes that containers ask for by what they
// are, not by what number they got when somebody plugged them in: by one of
// udev's stable names (/dev/serial/by-id/…), or by a class (tty-usb).
//
// It looks at /dev and changes nothing. What it finds may be gone the next
// moment; who asked looks again when a device comes or goes.
package device

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
)

// Label is a container's label with more devices, separated by blanks or
// commas, each as in the option --device or "class:" and the name of a class.
// The docker command line does not let a class pass in --device.
const Label = "io.minke.devices"

// Classes are the kinds of devices that can be asked for, and where below /dev
// they are. A container has them under the same paths.
var classes = map[string][]string{
	"tty-usb": {"ttyUSB*", "ttyACM*"},
	"serial":  {"ttyS*", "ttyAMA*"},
	"gpio":    {"gpiochip*"},
	"i2c":     {"i2c-*"},
	"spi":     {"spidev*"},
	"video":   {"video*", "media*", "v4l-subdev*"},
	"sound":   {"snd/*"},
	"input":   {"input/event*", "input/js*", "input/mouse*"},
	"hid":     {"hidraw*"},
	"usb":     {"bus/usb/*/*"},
	"gpu":     {"dri/*"},
}

// A Want is a device, or all of a class, whether it is plugged in or not.
type Want struct {
	Class  string
	Path   string // on the host
	Target string // in the container
	Access string // of r, w and m
}

// A Node is a device that is plugged in, as a container is to have it.
type Node struct {
	Path         string // in the container
	Source       string // on the host
	Block        bool
	Major, Minor uint32
	Mode         uint32 // permissions
	UID, GID     uint32
	Access       string
}

// Wants divides what a container asks for into devices that may come and go,
// and the rest.
func Wants(devices []container.DeviceMapping, labels map[string]string) (wants []Want, rest []container.DeviceMapping, err error) {
	for _, m := range devices {
		w, late, err := wantOf(m)
		switch {
		case err != nil:
			return nil, nil, err
		case late:
			wants = append(wants, w)
		default:
			rest = append(rest, m)
		}
	}
	for _, text := range strings.FieldsFunc(labels[Label], func(r rune) bool { return r == ' ' || r == ',' }) {
		host, inside, _ := strings.Cut(text, ":")
		inside, access, _ := strings.Cut(inside, ":")
		w, late, err := wantOf(container.DeviceMapping{PathOnHost: host, PathInContainer: inside, CgroupPermissions: access})
		if err != nil {
			return nil, nil, err
		}
		if !late && !filepath.IsAbs(host) {
			return nil, nil, errdef.Invalid.Errorf("label %s: %q is neither a path nor class:NAME", Label, text)
		}
		if !late { // any device is plugged in some day
			w = Want{Path: host, Target: inside, Access: access}
		}
		wants = append(wants, w.filled())
	}
	return wants, rest, nil
}

func wantOf(m container.DeviceMapping) (w Want, late bool, err error) {
	if m.PathOnHost == "class" {
		if _, ok := classes[m.PathInContainer]; !ok {
			return w, false, errdef.Invalid.Errorf("there is no device class %q; there are %s", m.PathInContainer, strings.Join(slices.Sorted(maps.Keys(classes)), ", "))
		}
		return Want{Class: m.PathInContainer, Access: m.CgroupPermissions}.filled(), true, nil
	}
	if path := filepath.Clean(m.PathOnHost); strings.HasPrefix(path, "/dev/") && strings.Contains(path, "/by-") {
		return Want{Path: path, Target: m.PathInContainer, Access: m.CgroupPermissions}.filled(), true, nil
	}
	return w, false, nil
}

func (w Want) filled() Want {
	if w.Target == "" {
		w.Target = w.Path
	}
	if w.Access == "" {
		w.Access = "rwm"
	}
	return w
}

// Host is where devices are.
type Host struct {
	Dev string // "/dev", but in tests
}

// Nodes are the wanted devices that are plugged in, by path in the container.
func (h Host) Nodes(wants []Want) []Node {
	found := map[string]Node{}
	for _, w := range wants {
		if w.Class == "" {
			if n, ok := h.node(filepath.Join(h.Dev, strings.TrimPrefix(w.Path, "/dev")), w.Target, w.Access); ok {
				found[n.Path] = n
			}
			continue
		}
		for _, pattern := range classes[w.Class] {
			names, _ := filepath.Glob(filepath.Join(h.Dev, pattern)) // patterns are ours, and right
			for _, name := range names {
				target := "/dev" + strings.TrimPrefix(name, h.Dev)
				if n, ok := h.node(name, target, w.Access); ok {
					found[n.Path] = n
				}
			}
		}
	}
	return slices.SortedFunc(maps.Values(found), func(a, b Node) int { return strings.Compare(a.Path, b.Path) })
}

func (h Host) node(path, target, access string) (Node, bool) {
	source, err := filepath.EvalSymlinks(path)
	if err != nil {
		return Node{}, false
	}
	var st unix.Stat_t
	if unix.Stat(source, &st) != nil {
		return Node{}, false
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFCHR && kind != unix.S_IFBLK {
		return Node{}, false
	}
	return Node{
		Path: filepath.Clean(target), Source: source, Block: kind == unix.S_IFBLK, Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev),
		Mode: st.Mode & 0o777, UID: st.Uid, GID: st.Gid, Access: access,
	}, true
}

// Mapping is the node as a request for a device that is there.
func (n Node) Mapping() container.DeviceMapping {
	return container.DeviceMapping{PathOnHost: n.Source, PathInContainer: n.Path, CgroupPermissions: n.Access}
}

// Plug makes the node in the root directory of a running container, or makes it
// right. Its directory is made if need be.
func (n Node) Plug(root *os.Root) error {
	rel := relative(n.Path)
	if err := root.MkdirAll(filepath.Dir(rel), 0o755); err != nil {
		return err
	}
	if err := n.Unplug(root); err != nil {
		return err
	}
	dir, err := root.Open(filepath.Dir(rel))
	if err != nil {
		return err
	}
	defer dir.Close()
	kind := uint32(unix.S_IFCHR)
	if n.Block {
		kind = unix.S_IFBLK
	}
	name := filepath.Base(rel)
	if err := unix.Mknodat(int(dir.Fd()), name, kind|n.Mode, int(unix.Mkdev(n.Major, n.Minor))); err != nil {
		return &os.PathError{Op: "mknod", Path: n.Path, Err: err}
	}
	// Its owner first: a chown takes bits of the mode away, and umask others.
	if err := unix.Fchownat(int(dir.Fd()), name, int(n.UID), int(n.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "chown", Path: n.Path, Err: err}
	}
	return root.Chmod(rel, os.FileMode(n.Mode))
}

// Unplug removes the node from the root directory of a running container.
// What is there in its place, but for a device, stays.
func (n Node) Unplug(root *os.Root) error {
	rel := relative(n.Path)
	fi, err := root.Lstat(rel)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode()&os.ModeDevice == 0 {
		return errdef.Conflict.Errorf("%s in the container is no device; it stays", n.Path)
	}
	return root.Remove(rel)
}

func relative(path string) string { return strings.TrimPrefix(filepath.Clean(path), "/") }
