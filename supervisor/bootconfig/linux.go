package bootconfig

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/minke-os/minke/internal/errdef"
)

// What boots a Jetson or an i.MX8 takes two settings: fdt, a device tree, and
// isolcpus, processors that the scheduler leaves alone.
const extlinuxPrefix = "HOST_EXTLINUX_"

func checkExtlinux(want map[string]string) error {
	for _, key := range sorted(want) {
		if key != "fdt" && key != "isolcpus" {
			return errdef.Unsupported.Errorf("%s%s: this device takes fdt and isolcpus only", extlinuxPrefix, key)
		}
		if strings.ContainsAny(want[key], " \t") {
			return errdef.Invalid.Errorf("%s%s: its value has blanks", extlinuxPrefix, key)
		}
	}
	return nil
}

// readsUEnv reports whether a device's U-Boot reads extra_uEnv.txt.
func readsUEnv(deviceType string) bool {
	return slices.ContainsFunc([]string{
		"*-nano", "*-nano-emmc", "*-nano-2gb-devkit", "*-tx2", "*-tx2-nx*", "*-agx-orin-*", "*-orin-nx-*", "*-orin-nano-*",
		"imx8mm-var-som", "iot-gate-imx8plus", "iot-gate-imx8plus-d1d8", "imx8m-var-dart", "imx8mm-var-dart",
	}, func(pattern string) bool {
		ok, _ := path.Match(pattern, deviceType) // the patterns are right
		return ok
	})
}

// extraUEnv is a file of name=value lines that U-Boot takes up.
func extraUEnv(file string) Backend {
	return Backend{extlinuxPrefix, textFile{path: file, read: readUEnv, edit: editUEnv}}
}

func readUEnv(text string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "custom_fdt_file":
			out["fdt"] = value
		case "extra_os_cmdline":
			if v, ok := argument(value, "isolcpus"); ok {
				out["isolcpus"] = v
			}
		}
	}
	return out
}

func editUEnv(text string, want map[string]string, gone []string) (string, error) {
	if err := checkExtlinux(want); err != nil {
		return "", err
	}
	values := map[string]string{}
	var lines []string
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && (key == "custom_fdt_file" || key == "extra_os_cmdline") {
			values[key] = value
			continue
		}
		lines = append(lines, line)
	}
	if v, given := want["fdt"]; given || slices.Contains(gone, "fdt") {
		values["custom_fdt_file"] = v
	}
	values["extra_os_cmdline"] = withArgument(values["extra_os_cmdline"], "isolcpus", want, gone)
	for _, key := range sorted(values) {
		if values[key] != "" {
			lines = append(lines, key+"="+values[key])
		}
	}
	return strings.Join(append(lines, ""), "\n"), nil
}

// argument finds name=value among a kernel's arguments.
func argument(line, name string) (value string, ok bool) {
	for f := range strings.FieldsSeq(line) {
		if v, found := strings.CutPrefix(f, name+"="); found {
			value, ok = v, true
		}
	}
	return value, ok
}

// withArgument gives a kernel's arguments another value of one of them.
func withArgument(line, name string, want map[string]string, gone []string) string {
	value, given := want[name]
	if !given && !slices.Contains(gone, name) {
		return line
	}
	args := slices.DeleteFunc(strings.Fields(line), func(f string) bool { return strings.HasPrefix(f, name+"=") })
	if value != "" {
		args = append(args, name+"="+value)
	}
	return strings.Join(args, " ")
}

// bootsExtlinux reports whether a device boots by extlinux.conf: Jetsons with
// balenaOS before 2.47.
func bootsExtlinux(f Facts) bool {
	var major, minor int
	_, err := fmt.Sscanf(f.MetaBalena, "%d.%d", &major, &minor)
	return strings.HasPrefix(f.DeviceType, "jetson-") && err == nil && (major < 2 || major == 2 && minor < 47)
}

// extlinux is extlinux.conf: of the label that DEFAULT names, FDT and, in
// APPEND, isolcpus.
func extlinux(file string) Backend {
	return Backend{extlinuxPrefix, textFile{path: file, read: readExtlinux, edit: editExtlinux}}
}

func readExtlinux(text string) map[string]string {
	out := map[string]string{}
	_, body, _ := splitExtlinux(text)
	for _, line := range body {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case strings.EqualFold(word, "FDT"):
			out["fdt"] = strings.TrimSpace(rest)
		case strings.EqualFold(word, "APPEND"):
			if v, ok := argument(rest, "isolcpus"); ok {
				out["isolcpus"] = v
			}
		}
	}
	return out
}

// splitExtlinux gives the lines of the default label, and those around them.
func splitExtlinux(text string) (before, label, after []string) {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	name, from := "", -1
	for i, line := range lines {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case strings.EqualFold(word, "DEFAULT"):
			name = strings.TrimSpace(rest)
		case strings.EqualFold(word, "LABEL") && from >= 0:
			return lines[:from], lines[from:i], lines[i:]
		case strings.EqualFold(word, "LABEL") && strings.TrimSpace(rest) == name:
			from = i + 1
		}
	}
	if from < 0 {
		return lines, nil, nil
	}
	return lines[:from], lines[from:], nil
}

func editExtlinux(text string, want map[string]string, gone []string) (string, error) {
	if err := checkExtlinux(want); err != nil {
		return "", err
	}
	before, label, after := splitExtlinux(text)
	if label == nil {
		return "", errdef.Invalid.Errorf("extlinux.conf has no label that DEFAULT names; it stays as it is")
	}
	fdt, given := want["fdt"]
	ours := given || slices.Contains(gone, "fdt")
	var out []string
	for _, line := range label {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		indent := line[:len(line)-len(strings.TrimLeft(line, " \t"))]
		switch {
		case strings.EqualFold(word, "FDT") && ours:
			continue
		case strings.EqualFold(word, "APPEND"):
			line = indent + word + " " + withArgument(rest, "isolcpus", want, gone)
		}
		out = append(out, line)
	}
	if fdt != "" {
		out = slices.Insert(out, 0, "      FDT "+fdt)
	}
	return strings.Join(append(slices.Concat(before, out, after), ""), "\n"), nil
}
