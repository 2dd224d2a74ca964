package monitor

import (
	"bufio"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The monitor is idle nearly always, so it gives memory back when it has had
// nothing to do for trimAfter, at most once in trimEvery: heap to the kernel,
// and its program's pages to the page cache. A page that is needed again is
// mapped again without reading the disk.
const (
	trimAfter = 2 * time.Second
	trimEvery = time.Minute
)

// trimmer waits for quiet moments. At rest it has no timer running.
type trimmer struct {
	mu    sync.Mutex
	timer *time.Timer // nil: nothing was done since the last time
	last  time.Time
}

// busy says that there was something to do.
func (t *trimmer) busy() {
	t.mu.Lock()
	defer t.mu.Unlock()
	wait := max(trimAfter, trimEvery-time.Since(t.last))
	if t.timer == nil {
		t.timer = time.AfterFunc(wait, t.trim)
		return
	}
	t.timer.Reset(wait)
}

func (t *trimmer) trim() {
	t.mu.Lock()
	t.timer, t.last = nil, time.Now()
	t.mu.Unlock()
	debug.FreeOSMemory()
	dropProgram()
}

// dropProgram unmaps the pages of the program's read-only segments.
func dropProgram() {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || fields[5] != exe || fields[1][1] == 'w' {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 == nil && err2 == nil {
			unix.Syscall(unix.SYS_MADVISE, uintptr(start), uintptr(end-start), unix.MADV_DONTNEED)
		}
	}
}
