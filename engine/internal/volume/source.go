package volume

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
)

// The drivers: directories and what the kernel can mount, and partitions of
// storage that is plugged in.
const (
	Local = "local"
	USB   = "usb"
)

// A source is what a volume is, as its options say. The zero source is a
// directory of its own.
type source struct {
	kind   string // file system type, "bind" for a directory of the host, "" for a directory of our own
	device string
	flags  uintptr
	data   []string // options that the file system understands
	size   int64    // bytes; 0 is no limit
	disk   Disk     // of a partition that is plugged in
}

// A Disk names a partition. One of the fields is set.
type Disk struct{ Label, UUID, Path string }

func (d Disk) String() string {
	switch {
	case d.Label != "":
		return fmt.Sprintf("a partition with the label %q", d.Label)
	case d.UUID != "":
		return "a partition with the UUID " + d.UUID
	}
	return "a partition at " + d.Path
}

// shared reports whether the volume is a file system of another machine.
func (s source) shared() bool { return s.kind == "nfs" || s.kind == "nfs4" || s.kind == "cifs" }

func (s source) removable() bool { return s.disk != Disk{} }

// late reports whether it may come and go while containers run.
func (s source) late() bool { return s.shared() || s.removable() }

// mounted reports whether there is something to mount.
func (s source) mounted() bool { return s.kind != "" && s.kind != "bind" || s.removable() }

// mountFlags are the options of mount(8) that are flags of mount(2); the
// second is whether the flag is taken away.
var mountFlags = map[string]struct {
	flag  uintptr
	clear bool
}{
	"defaults": {0, false},
	"ro":       {unix.MS_RDONLY, false}, "rw": {unix.MS_RDONLY, true},
	"nosuid": {unix.MS_NOSUID, false}, "suid": {unix.MS_NOSUID, true},
	"nodev": {unix.MS_NODEV, false}, "dev": {unix.MS_NODEV, true},
	"noexec": {unix.MS_NOEXEC, false}, "exec": {unix.MS_NOEXEC, true},
	"sync": {unix.MS_SYNCHRONOUS, false}, "async": {unix.MS_SYNCHRONOUS, true},
	"dirsync": {unix.MS_DIRSYNC, false},
	"noatime": {unix.MS_NOATIME, false}, "atime": {unix.MS_NOATIME, true},
	"nodiratime": {unix.MS_NODIRATIME, false}, "diratime": {unix.MS_NODIRATIME, true},
	"relatime": {unix.MS_RELATIME, false}, "norelatime": {unix.MS_RELATIME, true},
	"strictatime": {unix.MS_STRICTATIME, false}, "lazytime": {unix.MS_LAZYTIME, false},
}

// parse reads a volume's options. The local driver takes Docker's: type,
// device, o and size; the usb driver label, uuid or path, and type and o.
func parse(v Volume) (source, error) {
	bad := func(format string, args ...any) (source, error) {
		return source{}, errdef.Invalid.Errorf("create %s: %s", v.Name, fmt.Sprintf(format, args...))
	}
	allowed := []string{"type", "o", "device", "size"}
	if v.Driver == USB {
		allowed = []string{"label", "uuid", "path", "type", "o"}
	}
	for k := range v.Options {
		if !slices.Contains(allowed, k) {
			return bad("invalid option: %q; the driver %q has %s", k, v.Driver, strings.Join(allowed, ", "))
		}
	}
	s := source{kind: v.Options["type"], device: v.Options["device"]}
	options := strings.FieldsFunc(v.Options["o"], func(r rune) bool { return r == ',' })
	if v.Driver == USB {
		s.disk = Disk{Label: v.Options["label"], UUID: v.Options["uuid"], Path: v.Options["path"]}
		if n := len(v.Options) - count(v.Options, "type", "o"); n != 1 || !s.removable() {
			return bad("the driver usb needs one of the options label, uuid and path, for example -o label=BACKUP")
		}
		// What somebody plugs in is not trusted with more than data.
		options = append([]string{"nosuid", "nodev", "noatime"}, options...)
	}
	if text := v.Options["size"]; text != "" {
		size, err := units.RAMInBytes(text)
		if err != nil || size <= 0 {
			return bad("invalid size: %q; want for example 10G", text)
		}
		s.size = size
	}
	if slices.Contains(options, "bind") || slices.Contains(options, "rbind") {
		if s.kind != "" && s.kind != "none" && s.kind != "bind" {
			return bad("o=bind goes with type=none, not %q", s.kind)
		}
		s.kind = "bind"
		options = slices.DeleteFunc(options, func(o string) bool { return o == "bind" || o == "rbind" })
	}
	for _, o := range options {
		f, ok := mountFlags[o]
		switch {
		case !ok:
			s.data = append(s.data, o)
		case f.clear:
			s.flags &^= f.flag
		default:
			s.flags |= f.flag
		}
	}
	if v.Driver == USB {
		return s, nil
	}
	switch {
	case s.kind == "" && (s.device != "" || v.Options["o"] != ""):
		return bad("missing required option: %q", "type")
	case s.kind != "" && s.device == "":
		return bad("missing required option: %q", "device")
	case s.kind == "none":
		return bad("type=none goes with o=bind")
	case s.kind == "bind" && !filepath.IsAbs(s.device):
		return bad("device must be an absolute path, not %q", s.device)
	case s.kind == "bind" && (s.flags != 0 || len(s.data) > 0):
		return bad("o=bind takes no further options; make the mount read-only where a container uses it")
	case s.kind == "cifs" && !strings.HasPrefix(s.device, "//"):
		return bad("device of a cifs volume is //server/share, not %q", s.device)
	case s.shared() && s.kind != "cifs" && !strings.Contains(s.device, ":"):
		return bad("device of an nfs volume is :/path with o=addr=SERVER, or SERVER:/path, not %q", s.device)
	case s.size > 0 && s.kind != "":
		return bad("size is for volumes on the disk of this device; give the size of a tmpfs as o=size=%s", v.Options["size"])
	}
	return s, nil
}

func count(m map[string]string, keys ...string) (n int) {
	for _, k := range keys {
		if _, ok := m[k]; ok {
			n++
		}
	}
	return n
}

// resolved is the source with its server's name looked up, for the kernel only
// takes addresses. Docker does this for the option addr; a server that is only
// named in the device is looked up as well.
func (s source) resolved(ctx context.Context) (source, error) {
	if !s.shared() {
		return s, nil
	}
	server := ""
	if s.kind == "cifs" {
		server, _, _ = strings.Cut(strings.TrimPrefix(s.device, "//"), "/")
	} else if i := strings.LastIndex(s.device, ":/"); i > 0 {
		server = strings.Trim(s.device[:i], "[]")
	}
	data := slices.Clone(s.data)
	at := slices.IndexFunc(data, func(o string) bool { return strings.HasPrefix(o, "addr=") || strings.HasPrefix(o, "ip=") })
	if at >= 0 {
		_, server, _ = strings.Cut(data[at], "=")
	}
	if server == "" {
		return s, errdef.Invalid.Errorf("no server is named; add o=addr=SERVER")
	}
	addrs, err := net.DefaultResolver.LookupIPAddr(ctx, server)
	if err != nil {
		return s, err
	}
	option := "addr=" + addrs[0].String()
	if at >= 0 {
		data[at] = option
	} else {
		data = append(data, option)
	}
	s.data = data
	return s, nil
}
