package plan

import (
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestAFilterIsWrittenOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "seccomp")
	denied := func(call string) *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{call}, Action: specs.ActErrno}}}
	}
	file := func(f *Filters, s *specs.LinuxSeccomp) string {
		t.Helper()
		path, err := f.file(s)
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	one := &Filters{Dir: dir, Hash: sha256.Sum256}
	mount := file(one, denied("mount"))
	full, err := os.ReadFile(mount)
	if err != nil || len(full) == 0 {
		t.Fatalf("%s has %d bytes, %v", mount, len(full), err)
	}
	if got := file(one, denied("mount")); got != mount {
		t.Errorf("the same profile again is in %s, want %s", got, mount)
	}
	another := file(one, denied("umount2"))
	if another == mount {
		t.Errorf("two profiles are both in %s", mount)
	}
	later := &Filters{Dir: dir} // another process, without a hash
	if a, b := file(later, denied("mount")), file(later, denied("umount2")); a != mount || b != another {
		t.Errorf("a later process has %s and %s, want %s and %s", a, b, mount, another)
	}
	if err := os.Truncate(mount, 8); err != nil { // as a crash while it is written
		t.Fatal(err)
	}
	again := file(&Filters{Dir: dir}, denied("mount"))
	if text, err := os.ReadFile(again); again == mount || err != nil || !bytes.Equal(text, full) {
		t.Errorf("with half a filter in %s, %s has %d bytes, %v; want another file with all %d", mount, again, len(text), err, len(full))
	}
	if path := file(one, nil); path != "" {
		t.Errorf("no profile has a filter in %s", path)
	}
}
