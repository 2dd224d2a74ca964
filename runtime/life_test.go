package runtime

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestExitCodesAndOutput(t *testing.T) {
	b := newBox(t)
	tests := []struct {
		name, script string
		code         int
		out          string
	}{
		{"success", "echo hello", 0, "hello\n"},
		{"failure", "echo oops >&2; exit 3", 3, "oops\n"},
		{"signal-is-128-plus-its-number", "sh -c 'kill -9 $$'; exit $?", 137, ""},
		{"hostname", "hostname", 0, "c4\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, out := b.sh(tt.script)
			if code != tt.code || !strings.Contains(out, tt.out) {
				t.Errorf("sh -c %q = %d, %q; want %d, %q", tt.script, code, out, tt.code, tt.out)
			}
		})
	}
}

func TestOutputIsInTheLogWhenWaitReturns(t *testing.T) {
	b := newBox(t)
	c := b.container("sh", "-c", "echo one; echo two >&2; printf three")
	b.run(c)
	log, err := os.ReadFile(c.Log.Path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`{"log":"one\n","stream":"stdout","time":"2`, `{"log":"two\n","stream":"stderr"`, `{"log":"three","stream":"stdout"`} {
		if !strings.Contains(string(log), want) {
			t.Errorf("log = %s; want it to have %s", log, want)
		}
	}
}

func TestProgramsThatCannotBeRun(t *testing.T) {
	b := newBox(t)
	if err := os.WriteFile(b.image+"/garbage", []byte("\x01\x02"), 0o755); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, program string
		code          int
		text          string
	}{
		{"not-in-path", "nonsense", 127, `exec: "nonsense": executable file not found in $PATH`},
		{"no-such-file", "/no/such", 127, `exec: "/no/such": stat /no/such: no such file or directory`},
		{"directory", "/etc", 126, `exec: "/etc": is a directory`},
		{"not-executable", "/etc/passwd", 126, `exec: "/etc/passwd": permission denied`},
		{"wrong-format", "/garbage", 126, `exec /garbage: exec format error`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := b.container(tt.program)
			if _, _, err := b.Create(b.ctx, c); err != nil {
				t.Fatal(err)
			}
			err := b.Start(b.ctx, c.ID)
			var se *StartError
			if !errors.As(err, &se) || se.Code != tt.code || se.Error() != tt.text {
				t.Errorf("Start = %v (%T), want a StartError %d %q", err, err, tt.code, tt.text)
			}
			if err := b.Delete(b.ctx, c.ID); err != nil {
				t.Errorf("Delete after a failed start: %v", err)
			}
		})
	}
}

func TestExecRunsInTheContainer(t *testing.T) {
	b := newBox(t)
	c := b.container("sleep", "1000")
	b.start(c)
	p := *c.Spec.Process
	p.Args = []string{"sh", "-c", "hostname; ps | grep -c '[s]leep 1000'; cat; exit 5"}
	_, s, err := b.Exec(b.ctx, c.ID, Exec{ID: "e", Process: &p, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Stdin.Write([]byte("typed"))
	s.Stdin.Close()
	if got, want := b.read(s), c.ID+"\n1\ntyped"; got != want {
		t.Errorf("output = %q, want %q", got, want)
	}
	if e, err := b.WaitExec(b.ctx, c.ID, "e"); err != nil || e.Code != 5 {
		t.Errorf("WaitExec = %+v, %v; want code 5", e, err)
	}
	p.Args = []string{"nonsense"}
	if _, _, err := b.Exec(b.ctx, c.ID, Exec{ID: "f", Process: &p}); err == nil || !strings.Contains(err.Error(), "not found in $PATH") {
		t.Errorf("Exec(nonsense) = %v, want that it is not found", err)
	}
}

func TestTerminal(t *testing.T) {
	b := newBox(t)
	c := b.container("sh", "-c", "tty; stty size; test -c /dev/console && echo console; read x; stty size; echo got $x")
	c.Spec.Process.Terminal = true
	c.Spec.Process.ConsoleSize = &specs.Box{Width: 100, Height: 30}
	if _, _, err := b.Create(b.ctx, c); err != nil {
		t.Fatal(err)
	}
	s, err := b.Attach(b.ctx, c.ID, true, true, true)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := b.Start(b.ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	if err := b.Resize(b.ctx, c.ID, "", WindowSize{Width: 120, Height: 40}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stdin.Write([]byte("words\n")); err != nil {
		t.Fatal(err)
	}
	out := b.read(s)
	if e, err := b.Wait(b.ctx, c.ID); err != nil || e.Code != 0 {
		t.Errorf("Wait = %+v, %v; want code 0", e, err)
	}
	for _, want := range []string{"/dev/pts/0\r\n", "console\r\n", "40 120\r\n", "got words\r\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("terminal output = %q, want it to have %q", out, want)
		}
	}
}

func TestOrphansAreCollected(t *testing.T) {
	b := newBox(t)
	c := b.container("sh", "-c", "sh -c 'sleep 0.01 & echo $!'; exec sleep 1000")
	c.Spec.Linux.Namespaces = slices.DeleteFunc(c.Spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.PIDNamespace })
	if _, _, err := b.Create(b.ctx, c); err != nil {
		t.Fatal(err)
	}
	s, err := b.Attach(b.ctx, c.ID, false, true, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := b.Start(b.ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	pid, err := bufio.NewReader(s.Stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	path := "/proc/" + strings.TrimSpace(pid)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(path); err != nil {
			return
		}
		if time.Now().After(deadline) {
			stat, _ := os.ReadFile(path + "/stat")
			t.Fatalf("the orphan is still there: %s", stat)
		}
	}
}

func TestSizeOfTheMonitor(t *testing.T) {
	b := newBox(t)
	pid := b.monitorPid()
	for range 5 {
		b.start(b.container("sleep", "1000"))
	}
	const limit = 4000 + 5*100 // kB
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		pss := pssOf(t, pid)
		if pss <= limit {
			t.Logf("%d kB", pss)
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the monitor has %d kB with five containers, want at most %d", pss, limit)
		}
	}
}

func pssOf(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(data)) {
		var kB int
		if n, _ := fmt.Sscanf(l, "Pss: %d kB", &kB); n == 1 {
			return kB
		}
	}
	t.Fatalf("no Pss in %q", data)
	return 0
}
