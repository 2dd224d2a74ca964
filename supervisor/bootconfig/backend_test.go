package bootconfig

import (
	"encoding/base64"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// boot is a boot partition with one file, and the place in it that prefix names.
func boot(t *testing.T, f Facts, file, text, prefix string) (Backend, string) {
	t.Helper()
	f.Dir = t.TempDir()
	path := filepath.Join(f.Dir, file)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, b := range Backends(f) {
		if b.Prefix == prefix {
			return b, path
		}
	}
	t.Fatalf("a %s has no %s", f.DeviceType, prefix)
	return Backend{}, ""
}

const (
	pi = "raspberrypi4-64"

	configText = `# our board
dtparam=audio=on
gpu_mem=16
hdmi_force_hotplug:1=1
[pi3]
gpu_mem=32
[all]
dtoverlay=i2c-rtc,ds1307
dtparam=wakeup-source
dtparam=spi=on
dtoverlay=
enable_uart=1
[pi4]
max_framebuffers=2
`
	uEnvText = "# extra\nextra_os_cmdline=quiet isolcpus=1 splash\nother=a=b\n"
	extText  = `TIMEOUT 30
DEFAULT primary
LABEL old
      LINUX /old
      APPEND root=/dev/old
LABEL primary
      MENU LABEL primary kernel
      LINUX /boot/Image
      APPEND ${cbootargs} quiet
LABEL other
      FDT /other.dtb
`
)

func TestSettingsAreReadAndChanged(t *testing.T) {
	type vars = map[string]string
	for _, tt := range []struct {
		name         string
		f            Facts
		file, text   string
		prefix       string
		current      vars
		want         vars
		gone         []string
		after        string
		afterChanges bool
	}{
		{
			"config.txt-is-read-and-what-it-has-is-not-written-again", Facts{DeviceType: pi}, "config.txt", configText, "HOST_CONFIG_",
			vars{"dtparam": `"audio=on","spi=on"`, "gpu_mem": "16", "hdmi_force_hotplug:1": "1", "dtoverlay": `"i2c-rtc,ds1307,wakeup-source"`, "enable_uart": "1"},
			vars{"gpu_mem": "16", "dtparam": `"audio=on","spi=on"`, "dtoverlay": "i2c-rtc,ds1307,wakeup-source"}, nil, configText, false,
		},
		{
			"values-change-and-go-in-config.txt", Facts{DeviceType: pi}, "config.txt", configText, "HOST_CONFIG_", nil,
			vars{"gpu_mem": "64", "gpio": `"17=op","18=ip"`}, []string{"enable_uart", "hdmi_force_hotplug:1"},
			"gpio=17=op\ngpio=18=ip\ngpu_mem=64\n# our board\ndtparam=audio=on\n[pi3]\ngpu_mem=32\n[all]\ndtoverlay=i2c-rtc,ds1307\ndtparam=wakeup-source\ndtparam=spi=on\ndtoverlay=\n[pi4]\nmax_framebuffers=2\n", true,
		},
		{
			"overlays-come-last-and-keep-the-board's-parameters", Facts{DeviceType: pi}, "config.txt", configText, "HOST_CONFIG_", nil,
			vars{"dtoverlay": `"vc4-kms-v3d,cma-256,noaudio","w1-gpio"`}, nil,
			"# our board\ndtparam=audio=on\ngpu_mem=16\nhdmi_force_hotplug:1=1\n[pi3]\ngpu_mem=32\n[all]\ndtparam=spi=on\nenable_uart=1\n[pi4]\nmax_framebuffers=2\n[all]\ndtoverlay=vc4-kms-v3d\ndtparam=cma-256\ndtparam=noaudio\ndtoverlay=w1-gpio\n", true,
		},
		{
			"a-fin-keeps-its-overlay", Facts{DeviceType: "fincm3"}, "config.txt", "", "HOST_CONFIG_", vars{},
			vars{"dtoverlay": "w1-gpio"}, nil, "dtoverlay=balena-fin\ndtoverlay=w1-gpio\n", true,
		},
		{
			"extra_uEnv", Facts{DeviceType: "jetson-nano"}, "extra_uEnv.txt", uEnvText, "HOST_EXTLINUX_", vars{"isolcpus": "1"},
			vars{"fdt": "/my.dtb", "isolcpus": "2,3"}, nil, "# extra\nother=a=b\ncustom_fdt_file=/my.dtb\nextra_os_cmdline=quiet splash isolcpus=2,3\n", true,
		},
		{
			"extra_uEnv-without", Facts{DeviceType: "jetson-agx-orin-devkit"}, "extra_uEnv.txt", uEnvText, "HOST_EXTLINUX_", nil,
			nil, []string{"isolcpus"}, "# extra\nother=a=b\nextra_os_cmdline=quiet splash\n", true,
		},
		{
			"extlinux", Facts{DeviceType: "jetson-xavier", MetaBalena: "2.46.1"}, "extlinux/extlinux.conf", extText, "HOST_EXTLINUX_", vars{},
			vars{"fdt": "/my.dtb", "isolcpus": "2"}, nil,
			strings.NewReplacer("LABEL primary\n", "LABEL primary\n      FDT /my.dtb\n", "quiet\n", "quiet isolcpus=2\n").Replace(extText), true,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, path := boot(t, tt.f, tt.file, tt.text, tt.prefix)
			if tt.current != nil {
				if got, err := b.Current(); err != nil || !maps.Equal(got, tt.current) {
					t.Errorf("Current = %v, %v; want %v", got, err, tt.current)
				}
			}
			reboot, err := b.Set(tt.want, tt.gone)
			got, rerr := os.ReadFile(path)
			if err != nil || rerr != nil || reboot != tt.afterChanges || string(got) != tt.after {
				t.Errorf("Set(%v, %v) = %v, %v; the file is\n%s\nwant %v and\n%s", tt.want, tt.gone, reboot, err, got, tt.afterChanges, tt.after)
			}
			if reboot, err := b.Set(tt.want, tt.gone); reboot || err != nil {
				t.Errorf("Set again = %v, %v; want nothing to do", reboot, err)
			}
		})
	}
}

func TestWrongSettingsChangeNothing(t *testing.T) {
	for _, tt := range []struct {
		name, prefix, key, value, want string
	}{
		{"a-forbidden-key", "HOST_CONFIG_", "kernel", "mine", "Attempt to change blacklisted config value kernel"},
		{"two-lines", "HOST_CONFIG_", "gpu_mem", "16\nkernel=mine", "more than one line"},
		{"a-list-that-does-not-end", "HOST_CONFIG_", "dtparam", `"a","b`, "HOST_CONFIG_dtparam: want"},
		{"no-picture", "HOST_SPLASH_", "image", "AAAA", "want a PNG"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, path := boot(t, Facts{DeviceType: pi}, "config.txt", configText, tt.prefix)
			reboot, err := b.Set(map[string]string{tt.key: tt.value}, nil)
			if after, _ := os.ReadFile(path); reboot || err == nil || !strings.Contains(err.Error(), tt.want) || string(after) != configText {
				t.Errorf("Set(%s=%q) = %v, %v; want an error with %q and no change", tt.key, tt.value, reboot, err, tt.want)
			}
		})
	}
}

func TestTheSplashPictureChangesAndComesBack(t *testing.T) {
	const png = "\x89PNG\r\n\x1a\n"
	b, path := boot(t, Facts{DeviceType: "generic-amd64"}, "splash/balena-logo.png", png+"own", "HOST_SPLASH_")
	is := func(want string) {
		t.Helper()
		if got, err := os.ReadFile(path); string(got) != want || err != nil {
			t.Errorf("the picture is %q, %v; want %q", got, err, want)
		}
	}
	for _, text := range []string{"mine", "other"} {
		uri := "data:image/png;base64," + base64.StdEncoding.EncodeToString([]byte(png+text))
		if reboot, err := b.Set(map[string]string{"image": uri}, nil); !reboot || err != nil {
			t.Errorf("Set = %v, %v; want a reboot", reboot, err)
		}
		is(png + text)
	}
	if reboot, err := b.Set(nil, []string{"image"}); !reboot || err != nil {
		t.Errorf("Set without = %v, %v; want a reboot", reboot, err)
	}
	is(png + "own")
}
