package boot

import (
	"errors"
	"fmt"
	"os"
	"path"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// defaultDevices are in every container, by the OCI specification.
var defaultDevices = []specs.LinuxDevice{
	charDevice("/dev/null", 1, 3),
	charDevice("/dev/zero", 1, 5),
	charDevice("/dev/full", 1, 7),
	charDevice("/dev/random", 1, 8),
	charDevice("/dev/urandom", 1, 9),
	charDevice("/dev/tty", 5, 0),
}

func charDevice(path string, major, minor int64) specs.LinuxDevice {
	mode := os.FileMode(0o666)
	return specs.LinuxDevice{Path: path, Type: "c", Major: major, Minor: minor, FileMode: &mode}
}

var devLinks = [][2]string{
	{"/proc/self/fd", "fd"},
	{"/proc/self/fd/0", "stdin"},
	{"/proc/self/fd/1", "stdout"},
	{"/proc/self/fd/2", "stderr"},
	{"pts/ptmx", "ptmx"},
}

// populateDev makes device nodes and links, unless the configuration binds a
// directory of the host there, which is not ours to change.
func populateDev(root *os.File, cfg *Config) error {
	for _, m := range cfg.Mounts {
		if p, err := planMount(m); err == nil && p.kind == "bind" && path.Clean(p.dest) == "/dev" {
			return nil
		}
	}
	dev, err := makeDir(root, "/dev")
	if err != nil {
		return err
	}
	defer dev.Close()
	if err := linkDev(dev); err != nil {
		return err
	}
	for _, d := range cfg.devices() {
		if err := makeDevice(root, d.Path, d); err != nil {
			return fmt.Errorf("device %s: %w", d.Path, err)
		}
	}
	return nil
}

// devices are all nodes to make. The configuration's own come first: it may set
// another mode or owner.
func (cfg *Config) devices() (all []specs.LinuxDevice) {
	seen := map[string]bool{"/dev/ptmx": true}
	for _, list := range [][]specs.LinuxDevice{cfg.Devices, defaultDevices} {
		for _, d := range list {
			d.Path = path.Clean("/" + d.Path)
			if !seen[d.Path] {
				seen[d.Path] = true
				all = append(all, d)
			}
		}
	}
	return all
}

func linkDev(dev *os.File) error {
	links := devLinks
	if _, err := os.Lstat("/proc/kcore"); err == nil {
		links = append([][2]string{{"/proc/kcore", "core"}}, links...)
	}
	for _, l := range links {
		err := unix.Symlinkat(l[0], int(dev.Fd()), l[1])
		if errors.Is(err, unix.EEXIST) && l[1] == "ptmx" {
			// The image's own could be the host's multiplexer.
			if err = unix.Unlinkat(int(dev.Fd()), l[1], 0); err == nil {
				err = unix.Symlinkat(l[0], int(dev.Fd()), l[1])
			}
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return &os.PathError{Op: "symlink", Path: "/dev/" + l[1], Err: err}
		}
	}
	return nil
}

func makeDevice(root *os.File, name string, d specs.LinuxDevice) error {
	dir, err := makeDir(root, path.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	mode, err := deviceMode(d)
	if err != nil {
		return err
	}
	base := path.Base(name)
	dev := unix.Mkdev(uint32(d.Major), uint32(d.Minor))
	err = unix.Mknodat(int(dir.Fd()), base, mode, int(dev))
	switch {
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		return bindDevice(root, name)
	case errors.Is(err, unix.EEXIST):
		return checkExisting(dir, base, mode, dev)
	case err != nil:
		return os.NewSyscallError("mknod", err)
	}
	// The umask has its say in mknod.
	if err := unix.Fchmodat(int(dir.Fd()), base, mode&0o7777, 0); err != nil {
		return os.NewSyscallError("chmod", err)
	}
	if uid, gid := owner(d.UID), owner(d.GID); uid != 0 || gid != 0 {
		return unix.Fchownat(int(dir.Fd()), base, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
	}
	return nil
}

func owner(id *uint32) int {
	if id == nil {
		return 0
	}
	return int(*id)
}

func deviceMode(d specs.LinuxDevice) (uint32, error) {
	perm := uint32(0o666)
	if d.FileMode != nil {
		perm = uint32(d.FileMode.Perm())
	}
	switch d.Type {
	case "c", "u":
		return unix.S_IFCHR | perm, nil
	case "b":
		return unix.S_IFBLK | perm, nil
	case "p":
		return unix.S_IFIFO | perm, nil
	}
	return 0, fmt.Errorf("unknown device type %q", d.Type)
}

// checkExisting accepts a node of the image only if it is the same device.
func checkExisting(dir *os.File, base string, mode uint32, dev uint64) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if uint32(st.Mode)&unix.S_IFMT != mode&unix.S_IFMT || uint64(st.Rdev) != dev {
		return errors.New("the image has something else there")
	}
	return nil
}

// bindDevice stands in for mknod where that is not allowed, as in a user
// namespace: the host's node of the same name.
func bindDevice(root *os.File, name string) error {
	p := mountPlan{kind: "bind", source: name, dest: name}
	return p.mount(root)
}
