package lock

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/supervisor/model"
)

func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range list {
		out = append(out, e.Name())
	}
	return out
}

func TestTakeLocksAllServicesAndReleaseFreesThem(t *testing.T) {
	testenv.NeedRoot(t) // our locks belong to another user
	root := t.TempDir()
	l := New(root)
	if err := l.Take(1, []string{"web", "db"}, false); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"web", "db"} {
		dir := filepath.Join(root, "1", s)
		if got := entries(t, dir); len(got) != 2 {
			t.Errorf("%s has %v, want both locks", s, got)
		}
		st, err := os.Stat(dir)
		if err != nil || st.Mode()&os.ModeSticky == 0 || st.Mode().Perm() != 0o777 {
			t.Errorf("%s has mode %v, %v; want 1777", dir, st.Mode(), err)
		}
	}
	if err := l.Take(1, []string{"web"}, false); err != nil {
		t.Errorf("taking our own locks again: %v", err)
	}
	if err := l.Release(1); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, filepath.Join(root, "1", "web")); len(got) != 0 {
		t.Errorf("after Release web has %v", got)
	}
}

func TestAServicesLockHoldsTheWholeApplication(t *testing.T) {
	testenv.NeedRoot(t)
	kinds := map[string]func(path string) error{
		"file":      func(p string) error { return os.WriteFile(p, nil, 0o644) },
		"directory": func(p string) error { return os.Mkdir(p, 0o755) },
		"link":      func(p string) error { return os.Symlink("nowhere", p) },
	}
	for kind, make := range kinds {
		for _, name := range []string{"updates.lock", "resin-updates.lock"} {
			t.Run(kind+"-"+name, func(t *testing.T) {
				root := t.TempDir()
				l := New(root)
				if err := l.Prepare(1, "web"); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(root, "1", "web", name)
				if err := make(path); err != nil {
					t.Fatal(err)
				}
				err := l.Take(1, []string{"db"}, false) // web's directory is there from before
				if !errdef.Is(err, errdef.Busy) || err.Error() != "Lockfile exists for { appId: 1, service: web }" {
					t.Errorf("Take = %v, want it busy because of web", err)
				}
				if got := entries(t, filepath.Join(root, "1", "db")); len(got) != 0 {
					t.Errorf("a failed Take left %v", got)
				}
				if _, err := os.Lstat(path); err != nil {
					t.Errorf("the service's lock is gone: %v", err)
				}
				if err := l.Take(1, []string{"db"}, true); err != nil {
					t.Errorf("Take by force: %v", err)
				}
			})
		}
	}
}

func TestLocksOfADeadSupervisorAreClearedAndOthersKept(t *testing.T) {
	testenv.NeedRoot(t)
	root := t.TempDir()
	if err := New(root).Take(7, []string{"web"}, false); err != nil {
		t.Fatal(err)
	}
	theirs := filepath.Join(root, "7", "web", "updates.lock")
	if err := os.Remove(theirs); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(theirs, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := New(root).ReleaseAll(); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, filepath.Join(root, "7", "web")); len(got) != 1 || got[0] != "updates.lock" {
		t.Errorf("left are %v, want only the service's updates.lock", got)
	}
}

func TestHandOverIsSeenOnce(t *testing.T) {
	root := t.TempDir()
	l := New(root)
	if err := l.Prepare(1, "web"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "1", "web", "handover-complete"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false} {
		if got, err := l.HandedOver(1, "web"); got != want || err != nil {
			t.Errorf("HandedOver, call %d = %v, %v; want %v", i+1, got, err, want)
		}
	}
}

func TestLocksHeldThroughTheAPI(t *testing.T) {
	testenv.NeedRoot(t)
	root := t.TempDir()
	l := New(root)
	if err := l.Hold(1, []string{"web", "db"}, false); err != nil {
		t.Fatal(err)
	}
	if err := l.Take(1, []string{"web"}, false); !errdef.Is(err, errdef.Busy) {
		t.Errorf("the supervisor's Take beside a lock of the API = %v, want it busy", err)
	}
	if err := l.Hold(1, []string{"web"}, false); !errdef.Is(err, errdef.Busy) {
		t.Errorf("a second Hold = %v, want it busy", err)
	}
	if err := New(root).ReleaseAll(); err != nil { // the supervisor began again
		t.Fatal(err)
	}
	if list, err := l.List(); err != nil || len(list) != 2 || list[0].Holder != API || list[1].Service != "web" {
		t.Errorf("List = %v, %v; want db and web of the API", list, err)
	}
	if err := l.Free(1, []string{"web", "db"}, false); err != nil {
		t.Fatal(err)
	}
	if list, err := l.List(); err != nil || len(list) != 0 {
		t.Errorf("after Free there are %v, %v", list, err)
	}
}

func TestTheAPITakesAServicesLockByForceAndNeverTheSupervisors(t *testing.T) {
	testenv.NeedRoot(t)
	root := t.TempDir()
	l := New(root)
	if err := l.Prepare(1, "web"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(root, "1", "web", "updates.lock"), 0o666); err != nil { // reading it would block
		t.Fatal(err)
	}
	for name, f := range map[string]func(model.AppID, []string, bool) error{"Hold": l.Hold, "Free": l.Free} {
		if err := f(1, []string{"web"}, false); !errdef.Is(err, errdef.Busy) {
			t.Errorf("%s of a lock that the service holds = %v, want it busy", name, err)
		}
	}
	if err := l.Hold(1, []string{"web"}, true); err != nil {
		t.Errorf("Hold by force: %v", err)
	}
	if err := l.Free(1, []string{"web"}, true); err != nil {
		t.Errorf("Free by force: %v", err)
	}
	if err := l.Take(1, []string{"web"}, false); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(model.AppID, []string, bool) error{"Hold": l.Hold, "Free": l.Free} {
		if err := f(1, []string{"web"}, true); !errdef.Is(err, errdef.Busy) {
			t.Errorf("%s by force of a lock that the supervisor holds = %v, want it busy", name, err)
		}
	}
}
