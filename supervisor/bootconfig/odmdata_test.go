package bootconfig

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/testenv"
)

// tx2 is a Jetson TX2 whose boot partition has these bytes for its configuration.
func tx2(t *testing.T, configuration ...byte) (b Backend, device, readOnly string) {
	t.Helper()
	root := t.TempDir()
	device, readOnly = filepath.Join(root, "dev/mmcblk0boot0"), filepath.Join(root, "sys/block/mmcblk0boot0/force_ro")
	data := bytes.Repeat([]byte{0xa5}, 4<<20)
	for i, at := range odmOffsets {
		data[at] = configuration[i]
	}
	for path, content := range map[string][]byte{device: data, readOnly: []byte("1")} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range Backends(Facts{Dir: t.TempDir(), DeviceType: "jetson-tx2", Root: root}) {
		if b.Prefix == odmPrefix {
			return b, device, readOnly
		}
	}
	t.Fatal("a TX2 has no ODMDATA")
	return b, "", ""
}

func contents(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestAConfigurationIsThreeBytes(t *testing.T) {
	for n, want := range map[string]byte{"1": 0, "2": 1, "3": 6, "4": 7, "5": 2, "6": 3} {
		b, device, readOnly := tx2(t, 2, 2, 2)
		before := contents(t, device)
		reboot, err := b.Set(map[string]string{"configuration": n}, nil)
		if err != nil || reboot != (n != "5") {
			t.Errorf("Set(%s) = %v, %v; want a reboot unless it is so already", n, reboot, err)
		}
		for _, at := range odmOffsets {
			before[at] = want
		}
		if !bytes.Equal(contents(t, device), before) {
			t.Errorf("after Set(%s) other bytes than the three differ, or not all of them are %d", n, want)
		}
		if got := contents(t, readOnly); string(got) != "1" {
			t.Errorf("force_ro is %q after Set(%s)", got, n)
		}
		if got, err := b.Current(); err != nil || !maps.Equal(got, map[string]string{"configuration": n}) {
			t.Errorf("Current = %v, %v; want %s", got, err, n)
		}
		if reboot, err := b.Set(map[string]string{"configuration": n}, nil); reboot || err != nil {
			t.Errorf("Set(%s) again = %v, %v; want nothing to do", n, reboot, err)
		}
		if reboot, err := b.Set(nil, []string{"configuration"}); reboot || err != nil {
			t.Errorf("Set without = %v, %v; want it to stay", reboot, err)
		}
	}
}

// force_ro is a pipe here, so that the test sees what is written to it.
func TestThePartitionIsWritableForAMomentOnly(t *testing.T) {
	b, _, readOnly := tx2(t, 0, 0, 0)
	if err := os.Remove(readOnly); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(readOnly, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(readOnly, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := b.Set(map[string]string{"configuration": "4"}, nil); err != nil {
		t.Error(err)
	}
	var got [3]byte
	if n, err := f.Read(got[:]); string(got[:n]) != "01" || err != nil {
		t.Errorf("force_ro becomes %q, %v; want 0, then 1", got[:n], err)
	}
}

func TestADeathBetweenTheBytesIsMended(t *testing.T) {
	b, _, _ := tx2(t, 7, 0, 0)
	if got, err := b.Current(); err == nil {
		t.Errorf("Current = %v for bytes that differ, want an error", got)
	}
	if reboot, err := b.Set(map[string]string{"configuration": "4"}, nil); !reboot || err != nil {
		t.Errorf("Set = %v, %v; want a reboot", reboot, err)
	}
	if got, err := b.Current(); err != nil || got["configuration"] != "4" {
		t.Errorf("Current = %v, %v; want 4", got, err)
	}
}

func TestAPartitionThatIsNotOursIsLeftAlone(t *testing.T) {
	set := map[string]string{"configuration": "4"}
	for _, tt := range []struct {
		name  string
		bytes []byte
		want  map[string]string
		spoil func(device, readOnly string) error
		err   string
	}{
		{"a-number-that-is-none", []byte{0, 0, 0}, map[string]string{"configuration": "7"}, nil, `HOST_ODMDATA_configuration: want a number from 1 to 6, not "7"`},
		{"a-word", []byte{0, 0, 0}, map[string]string{"configuration": "four"}, nil, "want a number from 1 to 6"},
		{"another-setting", []byte{0, 0, 0}, map[string]string{"mode": "1"}, nil, "HOST_ODMDATA_mode: there is only HOST_ODMDATA_configuration"},
		{"another-layout", []byte{0, 0x41, 0}, set, nil, "has 0x41 at byte 5243, which is no configuration; it is left alone"},
		{"a-short-one", []byte{0, 0, 0}, set, func(device, _ string) error { return os.Truncate(device, 6000) }, "byte 18043: EOF"},
		{"none", []byte{0, 0, 0}, set, func(device, _ string) error { return os.Remove(device) }, "no such file"},
		{"no-way-to-write-it", []byte{0, 0, 0}, set, func(_, readOnly string) error { return os.Remove(readOnly) }, "force_ro: no such file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, device, readOnly := tx2(t, tt.bytes...)
			if tt.spoil != nil {
				if err := tt.spoil(device, readOnly); err != nil {
					t.Fatal(err)
				}
			}
			before, _ := os.ReadFile(device)
			reboot, err := b.Set(tt.want, nil)
			if reboot || err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("Set(%v) = %v, %v; want an error with %q", tt.want, reboot, err, tt.err)
			}
			if after, _ := os.ReadFile(device); !bytes.Equal(after, before) {
				t.Error("the partition has changed")
			}
		})
	}
}

func TestAPartitionThatStaysReadOnlyIsAnError(t *testing.T) {
	testenv.NeedRoot(t)
	b, device, readOnly := tx2(t, 0, 0, 0)
	if err := unix.Mount(device, device, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(device, 0)
	if err := unix.Mount("", device, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if reboot, err := b.Set(map[string]string{"configuration": "4"}, nil); reboot || err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("Set = %v, %v; want an error and no reboot", reboot, err)
	}
	if got := contents(t, readOnly); string(got) != "1" {
		t.Errorf("force_ro is %q after a failure", got)
	}
}
