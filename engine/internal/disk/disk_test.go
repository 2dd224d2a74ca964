package disk

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/minke-os/minke/internal/testenv"
)

// TestProbeAgreesWithBlkid makes file systems with their own tools and takes
// util-linux' word for what they are.
func TestProbeAgreesWithBlkid(t *testing.T) {
	blkid := testenv.Need(t, "blkid")
	tests := []struct {
		name string
		size int64
		make []string
	}{
		{"ext2", 4 << 20, []string{"mkfs.ext2", "-q", "-L", "old one"}},
		{"ext3", 4 << 20, []string{"mkfs.ext3", "-q", "-L", "journal"}},
		{"ext4", 4 << 20, []string{"mkfs.ext4", "-q", "-L", "BACKUP"}},
		{"ext4-without-label", 4 << 20, []string{"mkfs.ext4", "-q"}},
		{"xfs", 320 << 20, []string{"mkfs.xfs", "-q", "-L", "twelveletter"}},
		{"btrfs", 128 << 20, []string{"mkfs.btrfs", "-q", "-L", "a rather long label"}},
		{"f2fs", 64 << 20, []string{"mkfs.f2fs", "-q", "-l", "flash"}},
		{"fat32", 64 << 20, []string{"mkfs.vfat", "-F", "32", "-n", "STICK"}},
		{"fat16", 16 << 20, []string{"mkfs.vfat", "-F", "16", "-n", "SMALL"}},
		{"fat-without-label", 16 << 20, []string{"mkfs.vfat"}},
		{"exfat", 64 << 20, []string{"mkfs.exfat", "-L", "Camera 7"}},
		{"ntfs", 16 << 20, []string{"mkfs.ntfs", "-q", "-F", "-f", "-L", "Fenster"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			program := testenv.Need(t, tt.make[0])
			image := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(image, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(image, tt.size); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(program, append(tt.make[1:], image)...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v: %s", tt.make, err, out)
			}
			f, err := os.Open(image)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			got, want := Probe(f), ask(t, blkid, image)
			if got != want {
				t.Errorf("Probe = %+v, blkid says %+v", got, want)
			}
		})
	}
}

func ask(t *testing.T, blkid, image string) (fs FileSystem) {
	t.Helper()
	out, err := exec.Command(blkid, "-p", "-o", "export", image).Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = regexp.MustCompile(`\\(.)`).ReplaceAllString(value, "$1")
		switch key {
		case "TYPE":
			fs.Type = strings.ReplaceAll(value, "ntfs", "ntfs3") // the kernel's name
		case "LABEL":
			fs.Label = value
		case "UUID":
			fs.UUID = value
		}
	}
	return fs
}

func TestExtThatWasNotUnmountedIsDirty(t *testing.T) {
	program := testenv.Need(t, "mkfs.ext4")
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(program, "-q", image).CombinedOutput(); err != nil {
		t.Fatal(string(out))
	}
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// s_feature_incompat: the journal has something to say.
	incompat := make([]byte, 1)
	if _, err := f.ReadAt(incompat, 1024+0x60); err != nil {
		t.Fatal(err)
	}
	if Probe(f).Dirty {
		t.Error("a fresh file system is dirty")
	}
	if _, err := f.WriteAt([]byte{incompat[0] | 4}, 1024+0x60); err != nil {
		t.Fatal(err)
	}
	if !Probe(f).Dirty {
		t.Error("one with an unplayed journal is not")
	}
}

func FuzzProbe(f *testing.F) {
	boot := make([]byte, 8192)
	copy(boot[3:], "NTFS    ")
	f.Add(boot)
	fat := make([]byte, 8192)
	copy(fat[0x52:], "FAT32")
	fat[12], fat[13], fat[14], fat[16], fat[510], fat[511] = 2, 1, 1, 1, 0x55, 0xaa
	f.Add(fat)
	exfat := make([]byte, 8192)
	copy(exfat[3:], "EXFAT   ")
	f.Add(exfat)
	f.Fuzz(func(t *testing.T, data []byte) {
		fs := Probe(bytes.NewReader(data))
		if fs.Type == "" && fs != (FileSystem{}) {
			t.Errorf("Probe = %+v: something of nothing", fs)
		}
	})
}

func TestWatchFindsWhatIsPluggedIn(t *testing.T) {
	program := testenv.Need(t, "mkfs.ext4")
	dir := t.TempDir()
	sys, dev := filepath.Join(dir, "sys"), filepath.Join(dir, "dev")
	for _, d := range []string{filepath.Join(sys, "class/block/sda1"), dev} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	format := func(name, label string) {
		t.Helper()
		image := filepath.Join(dev, name)
		if err := os.WriteFile(image, make([]byte, 4<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(program, "-q", "-L", label, image).CombinedOutput(); err != nil {
			t.Fatal(string(out))
		}
	}
	w := newWatch(sys, dev)
	if _, ok := w.Find("BACKUP", "", ""); ok {
		t.Error("found before it was plugged in")
	}
	format("sda1", "BACKUP")
	w.Rescan()
	p, ok := w.Find("BACKUP", "", "")
	if !ok || p.Device != filepath.Join(dev, "sda1") || p.Type != "ext4" {
		t.Fatalf("Find = %+v, %v", p, ok)
	}
	if q, ok := w.Find("", strings.ToUpper(p.UUID), ""); !ok || q.Device != p.Device {
		t.Errorf("Find by UUID = %+v, %v", q, ok)
	}
	link := filepath.Join(dev, "by-path")
	if err := os.Symlink(p.Device, link); err != nil {
		t.Fatal(err)
	}
	if q, ok := w.Find("", "", link); !ok || q.UUID != p.UUID {
		t.Errorf("Find by path = %+v, %v", q, ok)
	}
	format("sda1", "OTHER") // another stick in the same card reader
	if !w.Handle("change", "sda1") {
		t.Error("a changed medium changes nothing")
	}
	if _, ok := w.Find("BACKUP", "", ""); ok {
		t.Error("the old label is still found")
	}
	if !w.Handle("remove", "sda1") {
		t.Error("a removed disk changes nothing")
	}
	select {
	case <-p.Gone:
	default:
		t.Error("Gone is not closed")
	}
	if _, ok := w.Find("OTHER", "", ""); ok {
		t.Error("found after it was pulled out")
	}
}
