package conformance

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// What a device may cost on which nothing changes: ten services run, one of them
// prints a line a second, the fleet server is polled every minute and gets logs.
const (
	idleServices = 10
	maxPSS       = 30 << 10 // kB, of minked and its monitor
	maxCPU       = 0.5      // % of a core
)

// TestAnIdleDevice takes as long as MINKE_TEST_IDLE says.
func TestAnIdleDevice(t *testing.T) {
	period, err := time.ParseDuration(os.Getenv("MINKE_TEST_IDLE"))
	if err != nil {
		t.Skip("takes ten minutes: make test-idle, or set MINKE_TEST_IDLE=10m")
	}
	services := obj{"talker": service(1, "garden:1", obj{"command": []string{"sh", "-c", "while sleep 1; do echo a line; done"}, "stop_grace_period": "0s"})}
	for i := 2; i <= idleServices; i++ {
		services[fmt.Sprintf("s%d", i)] = service(i, "garden:1", nil)
	}
	d := start(t, setup{managed: true, wants: target(obj{"RESIN_SUPERVISOR_POLL_INTERVAL": "60000"}, app{id: 1, uuid: "1d1e", name: "idle", commit: "i1", services: services})})
	defer d.empty()
	d.settled("i1")
	time.Sleep(30 * time.Second) // until what the start left to do is done

	pids := []int{d.host.Pid(), d.host.Monitor()}
	began, cpu, written := time.Now(), seconds(t, pids), bytesWritten(t, pids[0])
	polls, reports, lines := len(d.fleet.Polls()), len(d.fleet.Reports()), len(d.fleet.Lines())
	time.Sleep(period)
	load := 100 * (seconds(t, pids) - cpu) / time.Since(began).Seconds()
	pss := 0
	for _, pid := range pids {
		pss += kB(t, pid)
	}
	t.Logf("%v: PSS %.1f MB, CPU %.3f %% of a core, minked wrote %d bytes, all in memory; %d polls, %d reports, %d lines of log", time.Since(began).Round(time.Second),
		float64(pss)/1024, load, bytesWritten(t, pids[0])-written, len(d.fleet.Polls())-polls, len(d.fleet.Reports())-reports, len(d.fleet.Lines())-lines)
	if pss > maxPSS {
		t.Errorf("PSS is %d kB, want at most %d", pss, maxPSS)
	}
	if load > maxCPU {
		t.Errorf("CPU is %.3f %% of a core, want at most %v", load, maxCPU)
	}
	for _, path := range changed(t, d.data, began) {
		t.Errorf("%s was written", path)
	}
	if len(d.fleet.Polls()) == polls || len(d.fleet.Lines())-lines < int(period.Seconds())/2 {
		t.Error("the device did not do what was to be measured")
	}
}

// changed are the files and directories below dir that were written since, but
// for what containers print, which is theirs. What minked writes elsewhere is in
// its exec root, in memory.
func changed(t *testing.T, dir string, since time.Time) (out []string) {
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.ModTime().After(since) && !strings.HasSuffix(path, "-json.log") {
			out = append(out, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func read(t *testing.T, pid int, file string) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// seconds is how long processes have had a CPU.
func seconds(t *testing.T, pids []int) (sum float64) {
	for _, pid := range pids {
		_, after, _ := strings.Cut(read(t, pid, "stat"), ") ")
		fields := strings.Fields(after)
		for _, f := range fields[11:13] { // utime and stime, in hundredths
			n, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			sum += float64(n) / 100
		}
	}
	return sum
}

// field is the number after a name in a file of /proc.
func field(t *testing.T, text, name string) int {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name+":" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("there is no %s in %s", name, text)
	return 0
}

func bytesWritten(t *testing.T, pid int) int { return field(t, read(t, pid, "io"), "write_bytes") }

func kB(t *testing.T, pid int) int { return field(t, read(t, pid, "smaps_rollup"), "Pss") }
