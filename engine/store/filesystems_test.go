package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/powercut"
	"github.com/minke-os/minke/internal/testenv"
)

// Devices keep their data on xfs and btrfs too, where overlay, links and
// attributes have their own limits: the tests of what layers hold run there
// again, in a process of their own.
func TestLayersOnOtherFileSystems(t *testing.T) {
	testenv.NeedRoot(t)
	if os.Getenv("MINKE_POWERCUT") == "" || os.Getenv("MINKE_TEST_DIR") != "" {
		t.Skip("takes a minute: make test-powercut, and not in a chosen directory")
	}
	for name, size := range map[string]int64{"xfs": 512 << 20, "btrfs": 256 << 20} {
		t.Run(name, func(t *testing.T) {
			root := mounted(t, size, "mkfs."+name, "-q")
			cmd := exec.Command("/proc/self/exe", "-test.run",
				"LayerKeeps|LayerShows|Later|Whiteout|Implied|Sparse|SameContent|Writing|Adding|ObjectWith|Users|Commit|Renamed|Export|Shared|CheckFinds")
			cmd.Env = append(os.Environ(), "MINKE_TEST_DIR=/proc/self/fd/3")
			cmd.ExtraFiles = []*os.File{root}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("on %s: %v\n%s", name, err, out)
			}
		})
	}
}

// mounted is the root of a new file system of its own.
func mounted(t testing.TB, size int64, mkfs ...string) *os.File {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.Need(t, mkfs[0])
	root, err := powercut.Fresh(t.TempDir(), size, mkfs...)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, fs.ErrNotExist) {
		t.Skipf("needs loop devices, and a kernel with this file system: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

// disk is mounted's path.
func disk(t testing.TB, size int64, mkfs ...string) string {
	t.Helper()
	return fmt.Sprintf("/proc/self/fd/%d", mounted(t, size, mkfs...).Fd())
}
