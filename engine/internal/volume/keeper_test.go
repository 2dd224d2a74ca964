package volume

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/testenv"
)

func share(t *testing.T, s *Store, name string) {
	t.Helper()
	options := map[string]string{"type": "nfs", "device": ":/data", "o": "addr=127.0.0.1,vers=4"}
	if _, err := s.Create(Volume{Name: name, Options: options}); err != nil {
		t.Fatal(err)
	}
}

// A server answers mounts when somebody says so.
type server struct {
	mu       sync.Mutex
	err      error
	hang     chan struct{}
	attempts int
}

func (v *server) set(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.err = err
}

func (v *server) mount(source, string) error {
	v.mu.Lock()
	v.attempts++
	err, hang := v.err, v.hang
	v.mu.Unlock()
	if hang != nil {
		<-hang
	}
	return err
}

func TestShareThatIsAwayComesLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []bool
		s := open(t)
		s.onChange = func(_ string, present bool) { told = append(told, present) }
		away := &server{err: unix.ETIMEDOUT}
		s.mount = away.mount
		share(t, s, "data")
		if present, err := s.Use(t.Context(), "data", "web"); present || err != nil {
			t.Errorf("Use = %v, %v; want neither data nor an error", present, err)
		}
		v, _ := s.Get("data")
		if st := s.Status(v); st["state"] != "waiting" || !strings.Contains(st["error"].(string), "timed out") {
			t.Errorf("Status = %v; want that it waits and why", st)
		}
		time.Sleep(10 * time.Minute)
		if away.attempts < 10 || away.attempts > 30 {
			t.Errorf("%d attempts in ten minutes, want about one a minute", away.attempts)
		}
		away.set(nil)
		time.Sleep(lastRetry)
		synctest.Wait()
		if !slices.Equal(told, []bool{true}) || s.Status(v)["state"] != "mounted" {
			t.Errorf("told %v, Status %v; want that it has come", told, s.Status(v))
		}
		if present, err := s.Use(t.Context(), "data", "db"); !present || err != nil {
			t.Errorf("Use by another = %v, %v", present, err)
		}
		s.Release("data", "web")
		synctest.Wait()
		if s.Status(v)["state"] != "mounted" {
			t.Error("it is gone though somebody uses it")
		}
		s.Release("data", "db")
		synctest.Wait()
		if s.Status(v)["state"] != "unused" {
			t.Errorf("Status after the last user = %v", s.Status(v))
		}
		s.Close()
	})
}

func TestServerThatHangsHoldsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t)
		silent := &server{hang: make(chan struct{})}
		s.mount = silent.mount
		share(t, s, "data")
		create(t, s, "other")
		start := time.Now()
		if present, err := s.Use(t.Context(), "data", "web"); present || err != nil || time.Since(start) != patience {
			t.Errorf("Use = %v, %v after %v; want to go on without after %v", present, err, time.Since(start), patience)
		}
		if present, err := s.Use(t.Context(), "other", "web"); !present || err != nil {
			t.Errorf("Use of another volume = %v, %v", present, err)
		}
		// Somebody who comes while the last mount still hangs does not wait either.
		s.Release("data", "web")
		start = time.Now()
		if present, err := s.Use(t.Context(), "data", "web"); present || err != nil || time.Since(start) != patience {
			t.Errorf("second Use = %v, %v after %v", present, err, time.Since(start))
		}
		s.Close() // does not wait for the server
		close(silent.hang)
	})
}

func TestWhatCannotBeMountedFailsAtOnce(t *testing.T) {
	s := open(t)
	t.Cleanup(s.Close)
	s.mount = func(src source, _ string) error {
		if src.kind == "nfs" {
			return errdef.Unsupported.Errorf("no nfs")
		}
		return errors.New("bad superblock")
	}
	share(t, s, "share")
	if _, err := s.Create(Volume{Name: "disk", Options: map[string]string{"type": "ext4", "device": "/dev/null"}}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"share", "disk"} {
		if _, err := s.Use(context.Background(), name, "web"); err == nil || !strings.Contains(err.Error(), "volume "+name) {
			t.Errorf("Use(%s) = %v; want an error that names it", name, err)
		}
	}
}

func TestUnmountedWithoutUsersAndAfterACrash(t *testing.T) {
	testenv.NeedRoot(t)
	s := open(t)
	if _, err := s.Create(Volume{Name: "fast", Options: map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}}); err != nil {
		t.Fatal(err)
	}
	if present, err := s.Use(t.Context(), "fast", "web"); !present || err != nil {
		t.Fatalf("Use = %v, %v", present, err)
	}
	s.Close() // as a crash: the mount stays
	if m, err := mountedAt(s.Path("fast")); m == nil || err != nil {
		t.Fatalf("after Close: %v, %v; want the mount of a running container", m, err)
	}
	again, err := Open(Options{Root: s.root, DB: s.db})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(again.Close)
	if err := again.Reconcile(); err != nil {
		t.Fatal(err)
	}
	if m, _ := mountedAt(s.Path("fast")); m != nil {
		t.Error("nobody uses it, and it is still mounted")
	}
}

func TestOptions(t *testing.T) {
	tests := []struct {
		name, driver string
		options      map[string]string
		want         string // in the error; "" for none
	}{
		{"directory", "", nil, ""},
		{"bind", "", map[string]string{"type": "none", "o": "bind", "device": "/srv"}, ""},
		{"bind-of-a-relative-path", "", map[string]string{"type": "none", "o": "bind", "device": "srv"}, "absolute"},
		{"none-alone", "", map[string]string{"type": "none", "device": "/srv"}, "o=bind"},
		{"without-device", "", map[string]string{"type": "tmpfs"}, `missing required option: "device"`},
		{"without-type", "", map[string]string{"device": "tmpfs"}, `missing required option: "type"`},
		{"unknown", "", map[string]string{"colour": "red"}, "invalid option"},
		{"cifs", "", map[string]string{"type": "cifs", "device": "//server/share", "o": "username=iot"}, ""},
		{"cifs-with-a-path", "", map[string]string{"type": "cifs", "device": "/share"}, "//server/share"},
		{"nfs-without-a-path", "", map[string]string{"type": "nfs", "device": "server"}, "SERVER:/path"},
		{"size-that-is-none", "", map[string]string{"size": "big"}, "10G"},
		{"size-of-a-mount", "", map[string]string{"type": "tmpfs", "device": "tmpfs", "size": "1g"}, "o=size=1g"},
		{"stick", USB, map[string]string{"label": "BACKUP", "o": "ro"}, ""},
		{"stick-without-a-name", USB, nil, "label"},
		{"stick-with-two-names", USB, map[string]string{"label": "BACKUP", "uuid": "1"}, "one of"},
		{"another-driver", "rexray", nil, "plugin"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := open(t).Create(Volume{Name: "vol", Driver: tt.driver, Options: tt.options})
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("Create = %v, want %q in the error", err, tt.want)
			}
		})
	}
}

func TestQuotaIsKept(t *testing.T) {
	testenv.NeedRoot(t)
	tests := []struct {
		name, mkfs string
		args       []string
		size       int64
	}{
		{"ext4", "mkfs.ext4", []string{"-q", "-O", "quota,project", "-E", "quotatype=prjquota"}, 64 << 20},
		{"xfs", "mkfs.xfs", []string{"-q"}, 320 << 20},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			program := testenv.Need(t, tt.mkfs)
			testenv.Need(t, "mount")
			dir := testenv.DiskDir(t)
			image, disk := filepath.Join(dir, "image"), filepath.Join(dir, "disk")
			if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, tt.size), os.Mkdir(disk, 0o755)); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(program, append(tt.args, image)...).CombinedOutput(); err != nil {
				t.Fatalf("%s: %s", tt.mkfs, out)
			}
			if out, err := exec.Command("mount", "-o", "loop,prjquota", image, disk).CombinedOutput(); err != nil {
				t.Skipf("needs a kernel with project quotas on %s: %s", tt.name, out)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(disk, 0); err != nil {
					t.Error(err)
				}
			})
			db, err := bbolt.Open(filepath.Join(dir, "db"), 0o600, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			s, err := Open(Options{Root: filepath.Join(disk, "volumes"), DB: db})
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"one", "two"} {
				if _, err := s.Create(Volume{Name: name, Options: map[string]string{"size": "2m"}}); err != nil {
					t.Fatal(err)
				}
			}
			fill := func(name string, n int) error {
				return os.WriteFile(filepath.Join(s.Path(name), "f"), make([]byte, n), 0o600)
			}
			if err := fill("one", 4<<20); !errors.Is(err, unix.EDQUOT) && !errors.Is(err, unix.ENOSPC) {
				t.Errorf("writing 4 MiB to a volume of 2 MiB = %v, want no space", err)
			}
			if err := fill("two", 1<<20); err != nil {
				t.Errorf("the other volume: %v", err)
			}
			if err := s.Remove("one"); err != nil {
				t.Error(err)
			}
			if err := s.Remove("two"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSizeNeedsQuotas(t *testing.T) {
	s := open(t)
	_, err := s.Create(Volume{Name: "small", Options: map[string]string{"size": "1m"}})
	if err == nil {
		t.Skip("the temporary directory has project quotas")
	}
	if !errdef.Is(err, errdef.Invalid) || !strings.Contains(err.Error(), "prjquota") {
		t.Errorf("Create = %v, want a word about prjquota", err)
	}
	if _, err := os.Stat(filepath.Join(s.root, "small")); !os.IsNotExist(err) {
		t.Errorf("a refused volume leaves its directory: %v", err)
	}
}
