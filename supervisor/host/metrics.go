package host

import (
	"bufio"
	"bytes"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

type cpuTimes struct{ busy, total uint64 }

// Metrics are the meters by the fleet server's names: percent, degrees Celsius,
// and megabytes (of 2^20 bytes). What the host does not measure is left out.
func (h *Host) Metrics() map[string]any {
	out := map[string]any{"is_undervolted": h.undervolted()}
	if p, ok := h.cpuUsage(); ok {
		out["cpu_usage"] = p
	}
	if t, ok := h.temperature(); ok {
		out["cpu_temp"] = t
	}
	if id := h.cpuID(); id != "" {
		out["cpu_id"] = id
	}
	if used, total, ok := h.memory(); ok {
		out["memory_usage"], out["memory_total"] = used, total
	}
	var st unix.Statfs_t
	if h.o.Data != "" && unix.Statfs(h.o.Data, &st) == nil {
		block := uint64(st.Bsize)
		out["storage_usage"], out["storage_total"] = int((st.Blocks-st.Bfree)*block>>20), int(st.Blocks*block>>20)
		if dev := h.blockDevice(); dev != "" {
			out["storage_block_device"] = dev
		}
	}
	return out
}

// Free is how many bytes the data partition still takes; 0 if that cannot be
// told.
func (h *Host) Free() int64 {
	var st unix.Statfs_t
	if h.o.Data == "" || unix.Statfs(h.o.Data, &st) != nil {
		return 0
	}
	return int64(st.Bavail) * int64(st.Bsize)
}

// cpuUsage is since the last call.
func (h *Host) cpuUsage() (int, bool) {
	data, err := os.ReadFile(h.o.Root + "/proc/stat")
	if err != nil {
		return 0, false
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	fields := strings.Fields(string(line))
	if len(fields) < 6 || fields[0] != "cpu" {
		return 0, false
	}
	var now cpuTimes
	for i, f := range fields[1:min(len(fields), 9)] {
		n, _ := strconv.ParseUint(f, 10, 64)
		now.total += n
		if i != 3 && i != 4 { // idle, iowait
			now.busy += n
		}
	}
	h.mu.Lock()
	last := h.last
	h.last = now
	h.mu.Unlock()
	if now.total <= last.total || now.busy < last.busy {
		return 0, false
	}
	return int(math.Round(float64(now.busy-last.busy) * 100 / float64(now.total-last.total))), true
}

func (h *Host) temperature() (int, bool) {
	n, err := strconv.Atoi(h.firstLine("/sys/class/thermal/thermal_zone0/temp"))
	return int(math.Round(float64(n) / 1000)), err == nil
}

// undervolted is what a Raspberry Pi's firmware says.
func (h *Host) undervolted() bool {
	return h.firstLine("/sys/devices/platform/soc/soc:firmware/raspberrypi-hwmon/hwmon/hwmon0/in0_lcrit_alarm") == "1"
}

func (h *Host) cpuID() string {
	for _, path := range []string{
		"/proc/device-tree/serial-number", "/proc/device-tree/product-sn", "/sys/devices/soc0/serial_number", "/sys/class/dmi/id/board_serial",
	} {
		if id := strings.Trim(h.firstLine(path), "\x00 "); id != "" && id != "None" {
			return strings.ToLower(id)
		}
	}
	return ""
}

// memory counts what is used and cannot be given back.
func (h *Host) memory() (used, total int, ok bool) {
	data, err := os.ReadFile(h.o.Root + "/proc/meminfo")
	if err != nil {
		return 0, 0, false
	}
	kib := map[string]int{}
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		var name string
		var n int
		if _, err := fmt.Sscanf(s.Text(), "%s %d", &name, &n); err == nil {
			kib[strings.TrimSuffix(name, ":")] = n
		}
	}
	total = kib["MemTotal"]
	used = total - kib["MemFree"] - kib["Buffers"] - kib["Cached"] - kib["SReclaimable"]
	return used >> 10, total >> 10, total > 0
}

// blockDevice is what the data is on.
func (h *Host) blockDevice() string {
	data, err := os.ReadFile(h.o.Root + "/proc/self/mounts")
	if err != nil {
		return ""
	}
	best, device := "", ""
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) > 1 && strings.HasPrefix(f[0], "/dev/") && strings.HasPrefix(h.o.Data+"/", strings.TrimSuffix(f[1], "/")+"/") && len(f[1]) >= len(best) {
			best, device = f[1], f[0]
		}
	}
	return device
}

func (h *Host) firstLine(path string) string {
	data, err := os.ReadFile(h.o.Root + path)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(data), "\n")
	return strings.TrimSpace(line)
}
