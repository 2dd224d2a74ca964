package bootconfig

import (
	"slices"
	"strings"

	"github.com/minke-os/minke/internal/errdef"
)

// readsConfigTxt reports whether the firmware of a device reads config.txt:
// Raspberry Pis and what is built upon their modules.
func readsConfigTxt(deviceType string) bool {
	return strings.HasPrefix(deviceType, "raspberry") || slices.Contains([]string{
		"fincm3", "rt-rpi-300", "243390-rpi3", "nebra-hnt", "revpi-connect", "revpi-connect-s", "revpi-connect-4", "revpi-core-3",
	}, deviceType)
}

// forbidden are keys without which balenaOS does not start.
var forbidden = []string{
	"disable_commandline_tags", "cmdline", "kernel", "kernel_address", "kernel_old", "ramfsfile", "ramfsaddr", "initramfs",
	"device_tree_address", "init_emmc_clock", "avoid_safe_mode",
}

// arrays are keys that may stand in several lines.
var arrays = []string{"dtparam", "dtoverlay", "device_tree_param", "device_tree_overlay", "gpio"}

// baseParams begin the names of dtparams that belong to the board, wherever
// they stand; others belong to the dtoverlay before them.
var baseParams = []string{"audio", "spi", "i2c", "i2s", "uart", "sd_", "sdio_", "eth_", "act_led_", "pwr_led_", "watchdog", "random", "axiperf", "eee", "krnbt", "pcie", "nvme", "rtc"}

// configTxt is the file that a Raspberry Pi's firmware reads. Settings without
// overlays are written first, before any section, overlays last, in section
// [all], a dtoverlay line and one dtparam line for each parameter: long lines
// are cut off. Lines in other sections are for other boards, or for this one
// under some condition, and stay.
func configTxt(path, deviceType string) Backend {
	return Backend{
		Prefix: "HOST_CONFIG_",
		place: textFile{path: path, read: readConfigTxt, edit: func(text string, want map[string]string, gone []string) (string, error) {
			return editConfigTxt(text, want, gone, deviceType)
		}},
	}
}

// An entry is a line of config.txt; key is "" for one that sets nothing.
type entry struct {
	line, key, value string
	overlay          bool // a dtparam of the dtoverlay before it
	elsewhere        bool // in a section that is not [all]
}

func parseConfigTxt(text string) (out []entry, elsewhere bool) {
	overlay := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		e := entry{line: line}
		trimmed := strings.TrimSpace(line)
		key, value, sets := strings.Cut(trimmed, "=")
		switch {
		case strings.HasPrefix(trimmed, "#"):
		case strings.HasPrefix(trimmed, "["):
			elsewhere = trimmed != "[all]"
		case sets:
			e.key, e.value, e.elsewhere = strings.TrimSpace(key), strings.TrimSpace(value), elsewhere
			if e.key == "dtoverlay" || e.key == "device_tree_overlay" {
				overlay = e.value != ""
			}
			e.overlay = e.key == "dtparam" && overlay && !isBase(e.value)
		}
		out = append(out, e)
	}
	return out, elsewhere
}

func isBase(param string) bool {
	return slices.ContainsFunc(baseParams, func(p string) bool { return strings.HasPrefix(param, p) })
}

func readConfigTxt(text string) map[string]string {
	out, lists := map[string]string{}, map[string][]string{}
	lines, _ := parseConfigTxt(text)
	for _, e := range lines {
		overlays := lists["dtoverlay"]
		switch {
		case e.key == "" || e.elsewhere || e.value == "" || slices.Contains(forbidden, e.key):
		case e.overlay && len(overlays) > 0:
			overlays[len(overlays)-1] += "," + e.value
		case slices.Contains(arrays, e.key):
			lists[e.key] = append(lists[e.key], e.value)
		default:
			out[e.key] = e.value
		}
	}
	for k, v := range lists {
		out[k] = quoted(v)
	}
	return out
}

func editConfigTxt(text string, want map[string]string, gone []string, deviceType string) (string, error) {
	var first, last []string
	for _, key := range sorted(want) {
		if name, _, _ := strings.Cut(key, ":"); slices.Contains(forbidden, name) {
			return "", errdef.Forbidden.Errorf("Attempt to change blacklisted config value %s", key)
		}
		values := []string{want[key]}
		if slices.Contains(arrays, key) {
			var err error
			if values, err = list(want[key]); err != nil {
				return "", errdef.Invalid.Errorf("HOST_CONFIG_%s: %w", key, err)
			}
		}
		if key == "dtoverlay" {
			last = overlayLines(values, deviceType)
			continue
		}
		for _, v := range values {
			first = append(first, key+"="+v)
		}
	}
	ours := func(key string) bool {
		_, ok := want[key]
		return ok || slices.Contains(gone, key)
	}
	lines, elsewhere := parseConfigTxt(text)
	out := first
	for _, e := range lines {
		owner := e.key
		if e.overlay {
			owner = "dtoverlay"
		}
		if owner != "" && !e.elsewhere && ours(owner) {
			continue
		}
		out = append(out, e.line)
	}
	if len(last) > 0 && elsewhere {
		out = append(out, "[all]")
	}
	return strings.Join(append(append(out, last...), ""), "\n"), nil
}

// overlayLines are those of dtoverlay values such as vc4-kms-v3d,cma-256.
func overlayLines(values []string, deviceType string) (out []string) {
	const fin = "balena-fin"
	if deviceType == "fincm3" && !slices.Contains(values, fin) {
		values = append([]string{fin}, values...)
	}
	for _, v := range values {
		name, params, _ := strings.Cut(v, ",")
		out = append(out, "dtoverlay="+name)
		for p := range strings.SplitSeq(params, ",") {
			if p != "" {
				out = append(out, "dtparam="+p)
			}
		}
	}
	return out
}
