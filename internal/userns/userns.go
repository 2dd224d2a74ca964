//go:build linux

// Package userns makes user namespaces, and computes in their mappings.
//
// A namespace made here has no process in it; it lives as long as its
// descriptor or whoever entered it. It maps IDs of a container onto the host's,
// and, given to a mount, those on disk onto the host's.
package userns

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/fork"
	"github.com/minke-os/minke/internal/thread"
)

// A Mapping is of users and groups. The zero value is the host's own namespace,
// where everybody is who he is.
type Mapping struct {
	UIDs, GIDs []specs.LinuxIDMapping
}

// Host is what the container's user and group are on the host; false if one of
// them is nobody there.
func (m Mapping) Host(uid, gid uint32) (hostUID, hostGID uint32, ok bool) {
	if m.isHost() {
		return uid, gid, true
	}
	u, okU := translate(m.UIDs, uid, true)
	g, okG := translate(m.GIDs, gid, true)
	return u, g, okU && okG
}

// Container is the reverse of Host. What is not mapped is the kernel's overflow
// ID, 65534, as a process in the container sees it.
func (m Mapping) Container(uid, gid uint32) (uint32, uint32) {
	if m.isHost() {
		return uid, gid
	}
	u, ok := translate(m.UIDs, uid, false)
	if !ok {
		u = overflowID
	}
	g, ok := translate(m.GIDs, gid, false)
	if !ok {
		g = overflowID
	}
	return u, g
}

const overflowID = 65534

func (m Mapping) isHost() bool { return len(m.UIDs)+len(m.GIDs) == 0 }

func translate(list []specs.LinuxIDMapping, id uint32, toHost bool) (uint32, bool) {
	for _, m := range list {
		from, to := m.ContainerID, m.HostID
		if !toHost {
			from, to = to, from
		}
		if id >= from && id-from < m.Size {
			return to + (id - from), true
		}
	}
	return 0, false
}

// Of is the mapping that a process lives in.
func Of(pid int) (m Mapping, err error) {
	if m.UIDs, err = readMap(pid, "uid_map"); err != nil {
		return m, err
	}
	m.GIDs, err = readMap(pid, "gid_map")
	all := specs.LinuxIDMapping{Size: math.MaxUint32}
	if err == nil && slices.Equal(m.UIDs, []specs.LinuxIDMapping{all}) && slices.Equal(m.GIDs, m.UIDs) {
		return Mapping{}, nil
	}
	return m, err
}

func readMap(pid int, name string) (out []specs.LinuxIDMapping, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		return nil, err
	}
	words := strings.Fields(string(data))
	for ; len(words) >= 3; words = words[3:] {
		var n [3]uint32
		for i := range n {
			v, err := strconv.ParseUint(words[i], 10, 32)
			if err != nil {
				return nil, err
			}
			n[i] = uint32(v)
		}
		out = append(out, specs.LinuxIDMapping{ContainerID: n[0], HostID: n[1], Size: n[2]})
	}
	return out, nil
}

// New makes a namespace and returns its descriptor.
func New(m Mapping) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	defer w.Close()
	buf := new([1]byte)
	calls := []fork.Call{
		{Name: "close", Trap: unix.SYS_CLOSE, Args: [4]uintptr{w.Fd()}},
		// It waits in there until we let it end, or end ourselves.
		{Name: "read", Trap: unix.SYS_READ, Args: [4]uintptr{r.Fd(), uintptr(unsafe.Pointer(buf)), 1}},
	}
	child, err := fork.Start(fork.Options{Flags: unix.CLONE_NEWUSER}, calls)
	if err != nil {
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	ns, err := settle(child.Pid, m)
	unix.Write(int(w.Fd()), buf[:])
	child.Wait(calls)
	unix.Wait4(child.Pid, nil, 0, nil)
	if err != nil {
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	return ns, nil
}

func settle(pid int, m Mapping) (*os.File, error) {
	for name, list := range map[string][]specs.LinuxIDMapping{"uid_map": m.UIDs, "gid_map": m.GIDs} {
		var text []byte
		for _, l := range list {
			text = fmt.Appendf(text, "%d %d %d\n", l.ContainerID, l.HostID, l.Size)
		}
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", pid, name), text, 0); err != nil {
			return nil, err
		}
	}
	return os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
}

// MapMount makes a detached mount show and take IDs as the namespace maps them.
// EINVAL says that its file system cannot.
func MapMount(mount int, ns *os.File, recursive bool) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	return os.NewSyscallError("map IDs", unix.MountSetattr(mount, "", flags, &attr))
}

// CanMap says whether the file system that path is on can be mounted mapped.
func CanMap(path string, ns *os.File) bool {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return MapMount(fd, ns, false) == nil
}

// AsRoot runs f on a thread that is user and group 0 of the mapping for file
// systems, with all of our capabilities: on mounts that map IDs only somebody
// who is mapped can make files.
func (m Mapping) AsRoot(f func() error) error {
	if m.isHost() {
		return f()
	}
	uid, gid, ok := m.Host(0, 0)
	if !ok {
		return errdef.Invalid.Errorf("the mapping has no user 0 or no group 0")
	}
	return thread.Run(func() error {
		if err := become(int(uid), int(gid)); err != nil {
			return err
		}
		return f()
	})
}

func become(uid, gid int) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&hdr, &caps[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	if err := unix.Setfsgid(gid); err != nil {
		return os.NewSyscallError("setfsgid", err)
	}
	if err := unix.Setfsuid(uid); err != nil {
		return os.NewSyscallError("setfsuid", err)
	}
	return os.NewSyscallError("capset", unix.Capset(&hdr, &caps[0]))
}
