package device

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/testenv"
)

func mapping(host, inside, access string) container.DeviceMapping {
	return container.DeviceMapping{PathOnHost: host, PathInContainer: inside, CgroupPermissions: access}
}

func TestWants(t *testing.T) {
	plain := mapping("/dev/ttyS0", "/dev/ttyS0", "rwm")
	tests := []struct {
		name    string
		devices []container.DeviceMapping
		label   string
		want    []Want
		rest    []container.DeviceMapping
		bad     bool
	}{
		{name: "nothing"},
		{name: "a-plain-device-is-the-container's-for-good", devices: []container.DeviceMapping{plain}, rest: []container.DeviceMapping{plain}},
		{name: "stable-name", devices: []container.DeviceMapping{mapping("/dev/serial/by-id/usb-x", "/dev/board", "rw")},
			want: []Want{{Path: "/dev/serial/by-id/usb-x", Target: "/dev/board", Access: "rw"}}},
		{name: "class", devices: []container.DeviceMapping{mapping("class", "tty-usb", "")}, want: []Want{{Class: "tty-usb", Access: "rwm"}}},
		{name: "by-label", label: "class:gpio, /dev/ttyACM0:/dev/board:r",
			want: []Want{{Class: "gpio", Access: "rwm"}, {Path: "/dev/ttyACM0", Target: "/dev/board", Access: "r"}}},
		{name: "unknown-class", devices: []container.DeviceMapping{mapping("class", "flux", "")}, bad: true},
		{name: "label-that-is-no-path", label: "ttyACM0", bad: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			wants, rest, err := Wants(tt.devices, map[string]string{Label: tt.label})
			if tt.bad {
				if !errdef.Is(err, errdef.Invalid) {
					t.Errorf("Wants = %v, want an Invalid error", err)
				}
				return
			}
			if err != nil || !slices.Equal(wants, tt.want) || !slices.Equal(rest, tt.rest) {
				t.Errorf("Wants = %+v, %+v, %v; want %+v, %+v", wants, rest, err, tt.want, tt.rest)
			}
		})
	}
}

func TestNodesArePluggedAndUnplugged(t *testing.T) {
	testenv.NeedRoot(t)
	dir := t.TempDir()
	host := Host{Dev: filepath.Join(dir, "dev")}
	if err := os.MkdirAll(filepath.Join(host.Dev, "serial/by-id"), 0o755); err != nil {
		t.Fatal(err)
	}
	board := filepath.Join(host.Dev, "ttyUSB3")
	if err := unix.Mknod(board, unix.S_IFCHR|0o640, int(unix.Mkdev(188, 3))); err != nil {
		t.Skipf("needs a file system with device nodes: %v", err)
	}
	if err := os.Symlink("../../ttyUSB3", filepath.Join(host.Dev, "serial/by-id/usb-x")); err != nil {
		t.Fatal(err)
	}
	wants := []Want{
		{Class: "tty-usb", Access: "rw"}, {Path: "/dev/serial/by-id/usb-x", Target: "/dev/boards/first", Access: "rwm"},
		{Path: "/dev/serial/by-id/usb-y", Target: "/dev/boards/second"},
	}
	nodes := host.Nodes(wants)
	if len(nodes) != 2 || nodes[0].Path != "/dev/boards/first" || nodes[1].Path != "/dev/ttyUSB3" || nodes[0].Major != 188 || nodes[0].Minor != 3 {
		t.Fatalf("Nodes = %+v; want the board under two names", nodes)
	}

	// The container's root leads away from itself, but not us.
	outside := filepath.Join(dir, "outside")
	inside := filepath.Join(dir, "root")
	for _, d := range []string{outside, filepath.Join(inside, "dev")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(inside)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for range 2 { // again is no error
		if err := nodes[0].Plug(root); err != nil {
			t.Fatal(err)
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(inside, "dev/boards/first"), &st); err != nil || st.Mode != unix.S_IFCHR|0o640 || st.Rdev != unix.Mkdev(188, 3) {
		t.Errorf("node = mode %o, device %x, %v", st.Mode, st.Rdev, err)
	}
	for range 2 {
		if err := nodes[0].Unplug(root); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(inside, "dev/ttyUSB3"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := nodes[1].Unplug(root); err == nil {
		t.Error("a file of the container's went in place of a device")
	}
	if err := os.RemoveAll(filepath.Join(inside, "dev")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(inside, "dev")); err != nil {
		t.Fatal(err)
	}
	if err := nodes[1].Plug(root); err == nil {
		t.Error("a link of the container's leads out of it")
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("made outside: %v", left)
	}
}
