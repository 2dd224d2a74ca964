package boot

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// attr is what an option does to a mount's attributes.
type attr struct {
	set, clear uint64
	recursive  bool
}

var attrs = map[string]attr{
	"ro":            {set: unix.MOUNT_ATTR_RDONLY},
	"rw":            {clear: unix.MOUNT_ATTR_RDONLY},
	"nosuid":        {set: unix.MOUNT_ATTR_NOSUID},
	"suid":          {clear: unix.MOUNT_ATTR_NOSUID},
	"nodev":         {set: unix.MOUNT_ATTR_NODEV},
	"dev":           {clear: unix.MOUNT_ATTR_NODEV},
	"noexec":        {set: unix.MOUNT_ATTR_NOEXEC},
	"exec":          {clear: unix.MOUNT_ATTR_NOEXEC},
	"nodiratime":    {set: unix.MOUNT_ATTR_NODIRATIME},
	"diratime":      {clear: unix.MOUNT_ATTR_NODIRATIME},
	"nosymfollow":   {set: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"symfollow":     {clear: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"noatime":       {set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME},
	"strictatime":   {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
	"relatime":      {set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
	"atime":         {set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
	"norelatime":    {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
	"nostrictatime": {set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
}

var propagations = map[string]attr{
	"private":     {set: unix.MS_PRIVATE},
	"shared":      {set: unix.MS_SHARED},
	"slave":       {set: unix.MS_SLAVE},
	"unbindable":  {set: unix.MS_UNBINDABLE},
	"rprivate":    {set: unix.MS_PRIVATE, recursive: true},
	"rshared":     {set: unix.MS_SHARED, recursive: true},
	"rslave":      {set: unix.MS_SLAVE, recursive: true},
	"runbindable": {set: unix.MS_UNBINDABLE, recursive: true},
}

// superFlags are options of the file system, not of the mount. The kernel
// knows them by these names.
var superFlags = map[string]bool{"sync": true, "dirsync": true, "lazytime": true, "mand": true}

// noEffect are options that say what is so anyway.
var noEffect = map[string]bool{"defaults": true, "async": true, "nomand": true, "nolazytime": true, "loud": true, "silent": true, "iversion": true, "noiversion": true, "": true}

// A mountPlan is a mount of the configuration, understood.
type mountPlan struct {
	kind         string // file system type; "bind"
	source, dest string
	recursive    bool   // rbind
	set, clear   uint64 // attributes of the top mount
	rset, rclear uint64 // attributes of it and everything below
	propagation  []attr
	idmap        bool        // idmap or ridmap: IDs are mapped as in the user namespace
	idmapBelow   bool        // ridmap: also below it
	copyUp       bool        // fill a tmpfs with what is below it
	flags        []string    // superFlags
	data         [][2]string // key and value; the value of a flag is ""
	subpath      string      // of the new file system, what is to appear; "" is all
}

// subpathOption is ours: the configuration wants only a directory or a file of
// the file system that is mounted.
const subpathOption = "x-subpath="

func planMount(m specs.Mount) (mountPlan, error) {
	p := mountPlan{kind: m.Type, source: m.Source, dest: m.Destination}
	for _, o := range m.Options {
		name, recursive := strings.CutPrefix(o, "r")
		switch {
		case strings.HasPrefix(o, subpathOption):
			p.subpath = strings.TrimPrefix(o, subpathOption)
		case o == "bind":
			p.kind = "bind"
		case o == "rbind":
			p.kind, p.recursive = "bind", true
		case o == "idmap" || o == "ridmap":
			p.idmap, p.idmapBelow = true, o == "ridmap"
		case o == "remount":
			return p, fmt.Errorf("mount %s: option remount makes no sense in a new mount namespace", m.Destination)
		case o == "tmpcopyup" && p.kind == "tmpfs":
			p.copyUp = true
		case noEffect[o]:
		case superFlags[o]:
			p.flags = append(p.flags, o)
		case hasKey(propagations, o):
			p.propagation = append(p.propagation, propagations[o])
		case hasKey(attrs, o):
			p.set, p.clear = attrs[o].apply(p.set, p.clear)
		case recursive && hasKey(attrs, name):
			p.rset, p.rclear = attrs[name].apply(p.rset, p.rclear)
		default:
			key, value, _ := strings.Cut(o, "=")
			p.data = append(p.data, [2]string{key, value})
		}
	}
	if p.kind == "" {
		return p, fmt.Errorf("mount %s: neither a type nor the option bind", m.Destination)
	}
	return p, nil
}

func hasKey(m map[string]attr, k string) bool { _, ok := m[k]; return ok }

// apply gives the later of two contradicting options the last word.
func (a attr) apply(set, clear uint64) (uint64, uint64) {
	return set&^a.clear | a.set, clear&^a.set | a.clear
}

// open makes the mount, detached.
func (p mountPlan) open() (int, error) {
	if p.kind == "bind" {
		return p.openBind()
	}
	return p.openFS()
}

func (p mountPlan) openBind() (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if p.recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, p.source, flags)
	if err != nil {
		return -1, fmt.Errorf("bind %s: %w", p.source, err)
	}
	if err := p.setAttributes(fd); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("bind %s: %w", p.source, err)
	}
	return fd, nil
}

func (p mountPlan) setAttributes(fd int) error {
	if err := setattr(fd, 0, unix.MountAttr{Attr_set: p.set, Attr_clr: p.clear}); err != nil {
		return err
	}
	if err := setattr(fd, unix.AT_RECURSIVE, unix.MountAttr{Attr_set: p.rset, Attr_clr: p.rclear}); err != nil {
		return err
	}
	return nil
}

func setattr(fd int, flags uint, a unix.MountAttr) error {
	if a == (unix.MountAttr{}) {
		return nil
	}
	// The kernel wants the access time bits cleared whenever one is set.
	if a.Attr_set&unix.MOUNT_ATTR__ATIME != 0 {
		a.Attr_clr |= unix.MOUNT_ATTR__ATIME
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|flags, &a); err != nil {
		return fmt.Errorf("set mount attributes: %w", err)
	}
	return nil
}

func (p mountPlan) openFS() (int, error) {
	fs, err := unix.Fsopen(p.kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("mount %s: file system type %q: %w", p.dest, p.kind, err)
	}
	defer unix.Close(fs)
	if p.source != "" {
		err = unix.FsconfigSetString(fs, "source", p.source)
	}
	for _, f := range p.flags {
		if err == nil {
			err = unix.FsconfigSetFlag(fs, f)
		}
	}
	for _, kv := range p.data {
		if err == nil {
			err = setOption(fs, kv[0], kv[1])
		}
	}
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if err != nil {
		return -1, fmt.Errorf("mount %s at %s: %w%s", p.kind, p.dest, err, kernelLog(fs))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(p.set|p.rset))
	if err != nil {
		return -1, fmt.Errorf("mount %s at %s: %w%s", p.kind, p.dest, err, kernelLog(fs))
	}
	return fd, nil
}

func setOption(fs int, key, value string) error {
	if value == "" {
		return unix.FsconfigSetFlag(fs, key)
	}
	return unix.FsconfigSetString(fs, key, value)
}

// kernelLog is what the kernel said about a failed mount, as " (text)".
func kernelLog(fs int) string {
	buf := make([]byte, 512)
	n, err := unix.Read(fs, buf)
	if err != nil || n <= 0 {
		return ""
	}
	return " (" + strings.TrimSpace(strings.TrimLeft(string(buf[:n]), "ewi ")) + ")"
}

// attach moves the detached mount fd onto target and gives it the propagation.
func (p mountPlan) attach(fd int, target *os.File) error {
	if err := moveMount(fd, target); err != nil {
		return fmt.Errorf("mount %s at %s: %w", p.kind, p.dest, err)
	}
	for _, a := range p.propagation {
		flags := uint(0)
		if a.recursive {
			flags = unix.AT_RECURSIVE
		}
		if err := setattr(fd, flags, unix.MountAttr{Propagation: a.set}); err != nil {
			return fmt.Errorf("propagation of %s: %w", p.dest, err)
		}
	}
	return nil
}

func moveMount(fd int, target *os.File) error {
	const flags = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	return unix.MoveMount(fd, "", int(target.Fd()), "", flags)
}

// mountAll makes the configuration's mounts below root, in order.
func mountAll(root *os.File, cfg *Config) error {
	for i, m := range cfg.Mounts {
		p, err := planMount(m)
		if err != nil {
			return err
		}
		given, isGiven := cfg.Given.Mounts[i]
		switch {
		case isGiven:
			err = p.place(root, firstFD+given)
		case p.kind == "cgroup":
			err = mountCgroups(root, p, cfg)
		default:
			err = p.mount(root)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p mountPlan) mount(root *os.File) error {
	fd, err := p.open()
	if err != nil {
		return err
	}
	return p.place(root, fd)
}

// place moves the detached mount fd, or what is asked for of it, to its place
// below root, and closes it.
func (p mountPlan) place(root *os.File, fd int) error {
	if p.subpath != "" {
		var err error
		if fd, err = p.subtree(root, fd); err != nil {
			return err
		}
	}
	defer unix.Close(fd)
	return p.attachIn(root, fd)
}

// subtree trades a detached mount for one of a part of it. Before Linux 6.15
// only what is attached can be cloned, so it lies on the root for a moment,
// where nobody else is yet.
func (p mountPlan) subtree(root *os.File, fd int) (int, error) {
	whole := os.NewFile(uintptr(fd), p.dest)
	defer whole.Close()
	if err := moveMount(fd, root); err != nil {
		return -1, fmt.Errorf("mount %s at %s: %w", p.kind, p.dest, err)
	}
	part, err := p.clone(whole)
	if uerr := unix.Unmount(fmt.Sprintf("/proc/self/fd/%d", fd), unix.MNT_DETACH); err == nil && uerr != nil {
		unix.Close(part)
		return -1, fmt.Errorf("mount %s at %s: take it from the root: %w", p.kind, p.dest, uerr)
	}
	return part, err
}

func (p mountPlan) clone(whole *os.File) (int, error) {
	f, err := openIn(whole, p.subpath)
	if err != nil {
		return -1, fmt.Errorf("mount %s: %w", p.dest, err)
	}
	defer f.Close()
	fd, err := unix.OpenTree(int(f.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, fmt.Errorf("mount %s: clone %s: %w", p.dest, p.subpath, err)
	}
	return fd, nil
}

// attachIn moves the detached mount fd to its place below root.
func (p mountPlan) attachIn(root *os.File, fd int) error {
	target, err := p.target(root, fd)
	if err != nil {
		return fmt.Errorf("mount point %s: %w", p.dest, err)
	}
	defer target.Close()
	if p.copyUp {
		if err := copyUp(fd, target); err != nil {
			return fmt.Errorf("copy up %s: %w", p.dest, err)
		}
	}
	return p.attach(fd, target)
}

// target opens the mount point, and makes it if it is missing: a file for a
// file, a directory for a directory.
func (p mountPlan) target(root *os.File, fd int) (*os.File, error) {
	if p.kind == "proc" || p.kind == "sysfs" {
		// Through a link the image could have it somewhere else, and what is
		// masked later would not be masked (CVE-2019-19921).
		return openPlain(root, p.dest)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return makeDir(root, p.dest)
	}
	f, err := openIn(root, p.dest)
	if errors.Is(err, os.ErrNotExist) {
		f, err = makeFile(root, p.dest)
	}
	return f, err
}

// MountOptions lists the options that are understood; others go to the file
// system.
func MountOptions() []string {
	names := []string{"bind", "rbind", "idmap", "ridmap", "tmpcopyup"}
	names = slices.AppendSeq(names, maps.Keys(propagations))
	for name := range attrs {
		names = append(names, name, "r"+name)
	}
	slices.Sort(names)
	return names
}
