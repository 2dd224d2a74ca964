package runtime

import (
	"strings"
	"testing"

	profile "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestSeccomp(t *testing.T) {
	b := newBox(t)
	for _, nnp := range []bool{false, true} {
		name := "loaded-before-the-capabilities-go"
		if nnp {
			name = "loaded-last-with-no-new-privileges"
		}
		t.Run(name, func(t *testing.T) {
			c := b.container("sh", "-c", "grep -e ^Seccomp: -e NoNew /proc/self/status; unshare -n true || echo refused; touch /x && chown 1000 /x && echo works")
			c.Spec.Process.NoNewPrivileges = nnp
			c.Spec.Linux.Seccomp = dockerSeccomp(t, c.Spec)
			code, out := b.run(c)
			want := []string{"Seccomp:\t2", "refused", "works", "NoNewPrivs:\t0"}
			if nnp {
				want[3] = "NoNewPrivs:\t1"
			}
			for _, w := range want {
				if code != 0 || !strings.Contains(out, w) {
					t.Errorf("= %d, %q; want %q in it", code, out, w)
				}
			}
		})
	}
	c := b.container("sleep", "1000")
	c.Spec.Linux.Seccomp = dockerSeccomp(t, c.Spec)
	b.start(c)
	if out := b.exec(c, "grep", "^Seccomp:", "/proc/self/status"); out != "Seccomp:\t2\n" {
		t.Errorf("an exec's filter: %q, want the container's", out)
	}
}

func dockerSeccomp(t testing.TB, s *specs.Spec) *specs.LinuxSeccomp {
	t.Helper()
	p, err := profile.GetDefaultProfile(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// exec runs a command in a running container and returns its output.
func (b *box) exec(c Container, args ...string) string {
	b.t.Helper()
	p := *c.Spec.Process
	p.Args = args
	b.n++
	id := "e" + strings.Repeat("x", b.n)
	_, s, err := b.Exec(b.ctx, c.ID, Exec{ID: id, Process: &p, Stdout: true, Stderr: true})
	if err != nil {
		b.t.Fatalf("Exec(%q): %v", args, err)
	}
	defer s.Close()
	out := b.read(s)
	if _, err := b.WaitExec(b.ctx, c.ID, id); err != nil {
		b.t.Fatalf("WaitExec(%q): %v", args, err)
	}
	return out
}
