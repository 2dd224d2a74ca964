package engine

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// priorities are the nice value and the class and level of input and output of
// the calling thread.
func priorities(t *testing.T) (nice, io int) {
	data, err := os.ReadFile("/proc/thread-self/stat")
	if err != nil {
		t.Error(err)
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')'):]))
	if _, err := fmt.Sscan(fields[17], &nice); err != nil {
		t.Error(err)
	}
	n, _, _ := unix.Syscall(unix.SYS_IOPRIO_GET, 1, 0, 0)
	return nice, int(n)
}

func TestBackgroundWorkHasALowPriority(t *testing.T) {
	before, io := priorities(t)
	if err := background(func() error {
		if n, io := priorities(t); n != max(before, 10) || io != 2<<13|7 {
			t.Errorf("nice %d, ioprio %#x; want 10 and the last of best effort", n, io)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for range 10 { // whichever thread it is
		if n, i := priorities(t); n != before || i != io {
			t.Errorf("nice %d, ioprio %#x afterwards, want %d and %#x", n, i, before, io)
		}
	}
}
