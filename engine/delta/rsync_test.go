package delta

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minke-os/minke/internal/testenv"
)

func rsyncCases() map[string][2]string {
	base := noise(1, 300_000)
	return map[string][2]string{
		"same":             {base, base},
		"empty":            {base, ""},
		"of-nothing":       {"", base[:1000]},
		"shifted":          {base, "x" + base},
		"pieces":           {base, base[100_000:150_000] + noise(2, 3000) + base[:70_000] + base[299_000:]},
		"tail":             {base, base[:1024] + "end"},
		"long-literal":     {base, noise(3, 200_000)},
		"zeros":            {strings.Repeat("\x00", 100_000), strings.Repeat("\x00", 123_456)},
		"shorter-than-one": {"abc", "abcd"},
	}
}

// TestRsyncAgreesWithRdiff has librsync's own tool read what is made here, and
// reads what it makes.
func TestRsyncAgreesWithRdiff(t *testing.T) {
	rdiff := testenv.Need(t, "rdiff")
	for name, c := range rsyncCases() {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := func(name string) string { return filepath.Join(dir, name) }
			run := func(args ...string) {
				t.Helper()
				if out, err := exec.Command(rdiff, args...).CombinedOutput(); err != nil {
					t.Fatalf("rdiff %v: %v: %s", args, err, out)
				}
			}
			base, want := []byte(c[0]), []byte(c[1])
			for name, data := range map[string][]byte{"base": base, "target": want} {
				if err := os.WriteFile(file(name), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var made bytes.Buffer
			if err := MakeRsync(&made, bytes.NewReader(want), bytes.NewReader(base), int64(len(base))); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file("made"), made.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			run("patch", file("base"), file("made"), file("patched"))
			if got, err := os.ReadFile(file("patched")); err != nil || !bytes.Equal(got, want) {
				t.Errorf("rdiff makes %d bytes of ours, %v; want %d", len(got), err, len(want))
			}
			run("-b", "512", "signature", file("base"), file("signature"))
			run("delta", file("signature"), file("target"), file("theirs"))
			theirs, err := os.ReadFile(file("theirs"))
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if err := ApplyRsync(&got, bytes.NewReader(theirs), bytes.NewReader(base), int64(len(base))); err != nil || !bytes.Equal(got.Bytes(), want) {
				t.Errorf("of rdiff's we make %d bytes, %v; want %d", got.Len(), err, len(want))
			}
			if made.Len() > len(theirs)+len(theirs)/10+64 {
				t.Errorf("ours has %d bytes, rdiff's %d", made.Len(), len(theirs))
			}
		})
	}
}

func TestRsyncThatLiesIsRefused(t *testing.T) {
	base := []byte("0123456789")
	magic := "\x72\x73\x02\x36"
	for name, delta := range map[string]string{
		"no-magic":           "\x72\x73\x01\x36\x00",
		"cut":                magic + "\x05ab",
		"without-end":        magic + "\x01a",
		"behind-the-base":    magic + "\x45\x05\x06\x00",
		"overflowing":        magic + "\x54\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00\x00\x00\x00\x02\x00",
		"unknown-command":    magic + "\x55",
		"literal-of-forever": magic + "\x44\xff\xff\xff\xff\xff\xff\xff\xff",
	} {
		var out bytes.Buffer
		if err := ApplyRsync(&out, strings.NewReader(delta), bytes.NewReader(base), int64(len(base))); err == nil {
			t.Errorf("%s: accepted, makes %q", name, out.String())
		}
	}
}

func FuzzRsync(f *testing.F) {
	f.Add([]byte(strings.Repeat("some base ", 200)), []byte(strings.Repeat("some base ", 100)+"and more"))
	f.Fuzz(func(t *testing.T, base, target []byte) {
		var delta, got bytes.Buffer
		if err := MakeRsync(&delta, bytes.NewReader(target), bytes.NewReader(base), int64(len(base))); err != nil {
			t.Fatal(err)
		}
		if err := ApplyRsync(&got, bytes.NewReader(delta.Bytes()), bytes.NewReader(base), int64(len(base))); err != nil || !bytes.Equal(got.Bytes(), target) {
			t.Fatalf("%q became %q, %v", target, got.Bytes(), err)
		}
		got.Reset()
		if err := ApplyRsync(&got, bytes.NewReader(target), bytes.NewReader(base), int64(len(base))); err == nil && len(target) == 0 {
			t.Fatal("nothing is a delta")
		}
	})
}
