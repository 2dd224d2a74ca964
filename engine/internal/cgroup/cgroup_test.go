package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/moby/moby/api/types/container"
)

// write makes a cgroup's directory from file names and contents.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestRead(t *testing.T) {
	tests := []struct {
		name string
		dirs Dirs
		want Usage
	}{
		{"version-2", Dirs{"": write(t, map[string]string{
			"cpu.stat":       "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 1\nthrottled_usec 7\n",
			"memory.current": "4096\n", "memory.max": "max\n", "memory.stat": "anon 100\ninactive_file 50\n", "memory.events": "low 0\noom 2\n",
			"pids.current": "3\n", "pids.max": "max\n",
			"io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n253:0 \n",
		})}, Usage{
			CPU: container.CPUStats{
				CPUUsage:       container.CPUUsage{TotalUsage: 30_000, UsageInUsermode: 20_000, UsageInKernelmode: 10_000},
				ThrottlingData: container.ThrottlingData{Periods: 4, ThrottledPeriods: 1, ThrottledTime: 7000},
			},
			Memory: container.MemoryStats{Usage: 4096, Stats: map[string]uint64{"anon": 100, "inactive_file": 50}, Failcnt: 2},
			Pids:   container.PidsStats{Current: 3},
			Block: container.BlkioStats{IoServiceBytesRecursive: []container.BlkioStatEntry{
				{Major: 8, Op: "read", Value: 10}, {Major: 8, Op: "write", Value: 20},
			}},
		}},
		{"version-1", Dirs{
			"cpuacct": write(t, map[string]string{"cpuacct.usage": "50\n", "cpuacct.usage_percpu": "20 30 \n", "cpuacct.stat": "user 2\nsystem 1\n"}),
			"cpu":     write(t, map[string]string{"cpu.stat": "nr_periods 4\nnr_throttled 1\nthrottled_time 7\n"}),
			"memory":  write(t, map[string]string{"memory.usage_in_bytes": "4096\n", "memory.max_usage_in_bytes": "5000\n", "memory.failcnt": "1\n", "memory.limit_in_bytes": "8192\n", "memory.stat": "total_inactive_file 50\n"}),
			"pids":    write(t, map[string]string{"pids.current": "3\n", "pids.max": "20\n"}),
			"blkio":   write(t, map[string]string{"blkio.throttle.io_service_bytes_recursive": "8:0 Read 10\n8:0 Write 20\nTotal 30\n"}),
		}, Usage{
			CPU: container.CPUStats{
				CPUUsage:       container.CPUUsage{TotalUsage: 50, PercpuUsage: []uint64{20, 30}, UsageInUsermode: 20_000_000, UsageInKernelmode: 10_000_000},
				ThrottlingData: container.ThrottlingData{Periods: 4, ThrottledPeriods: 1, ThrottledTime: 7},
			},
			Memory: container.MemoryStats{Usage: 4096, MaxUsage: 5000, Failcnt: 1, Limit: 8192, Stats: map[string]uint64{"total_inactive_file": 50}},
			Pids:   container.PidsStats{Current: 3, Limit: 20},
			Block: container.BlkioStats{IoServiceBytesRecursive: []container.BlkioStatEntry{
				{Major: 8, Op: "Read", Value: 10}, {Major: 8, Op: "Write", Value: 20},
			}},
		}},
		{"controllers-that-are-not-there-read-as-zero", Dirs{"memory": write(t, nil)}, Usage{Memory: container.MemoryStats{Stats: map[string]uint64{}}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.dirs.Read()
			if err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("Read() = %+v, %v\nwant %+v", got, err, tt.want)
			}
		})
	}
}

func TestReadOfACgroupThatIsGoneSaysSo(t *testing.T) {
	if _, err := (Dirs{"memory": "/nosuch/cgroup"}).Read(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Read() = %v, want %v", err, fs.ErrNotExist)
	}
}

func FuzzBytesMoved(f *testing.F) {
	f.Add("8:0 rbytes=10 wbytes=20")
	f.Add("8: =")
	f.Fuzz(func(t *testing.T, line string) {
		for _, e := range bytesMoved(line) {
			if e.Op != "read" && e.Op != "write" {
				t.Errorf("bytesMoved(%q) has operation %q", line, e.Op)
			}
		}
	})
}
