package runtime

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/runtime/internal/wire"
	"github.com/minke-os/minke/runtime/jsonlog"
)

// monitorConn connects to the process that serves b's directory.
func (b *box) monitorConn() (*wire.Conn, int) {
	b.t.Helper()
	conn, err := wire.Dial(socketPath(b.options().Dir))
	if err != nil {
		b.t.Fatal(err)
	}
	cred, err := unix.GetsockoptUcred(conn.FD(), unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		b.t.Fatal(err)
	}
	return conn, int(cred.Pid)
}

func (b *box) monitorPid() int {
	conn, pid := b.monitorConn()
	conn.Close()
	return pid
}

func (b *box) killMonitor() {
	b.t.Helper()
	conn, pid := b.monitorConn()
	defer conn.Close()
	err := unix.Kill(pid, unix.SIGKILL)
	if err != nil {
		b.t.Fatal(err)
	}
	// Until its end has closed all it had, the socket would still accept.
	for err == nil {
		var e wire.Event
		_, err = conn.Recv(&e)
	}
}

func (b *box) logged(c Container) []string {
	b.t.Helper()
	data, err := os.ReadFile(c.Log.Path)
	if err != nil {
		b.t.Fatal(err)
	}
	var lines []string
	for l := range strings.Lines(string(data)) {
		e, err := jsonlog.Decode([]byte(l))
		if err != nil {
			b.t.Fatalf("log: %v in %q", err, l)
		}
		lines = append(lines, string(e.Line))
	}
	return lines
}

func TestContainersOutliveTheClient(t *testing.T) {
	b := newBox(t)
	c := b.container("sh", "-c", "read x; echo got $x; exit 4")
	c.Stdin = true
	b.start(c)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b.Monitor = b.open()
	if s := b.state(c.ID); s.Status != Running {
		t.Errorf("status = %s, want running", s.Status)
	}
	s, err := b.Attach(b.ctx, c.ID, true, true, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Stdin.Write([]byte("word\n"))
	if out := b.read(s); out != "got word\n" {
		t.Errorf("output = %q, want %q", out, "got word\n")
	}
	if e, err := b.Wait(b.ctx, c.ID); err != nil || e.Code != 4 {
		t.Errorf("Wait = %+v, %v; want code 4", e, err)
	}
}

func TestMonitorDeathLosesNoLineAndNoCode(t *testing.T) {
	b := newBox(t)
	const n = 30000
	chatty := b.container("sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i; i=$((i+1)); done; exit 7", n))
	split := b.container("sh", "-c", "printf begin; read x; printf -- -middle; read x; echo -end; exit 8")
	split.Stdin = true
	waiting := b.container("sh", "-c", "echo started late; exit 9")
	terminal := b.container("sh", "-c", "read x; echo terminal got $x; exit 10")
	terminal.Spec.Process.Terminal = true
	b.start(chatty)
	b.start(split)
	b.start(terminal)
	if _, _, err := b.Create(b.ctx, waiting); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		for entries := 0; entries < (i+1)*n/10; { // the last one may be half written
			data, err := os.ReadFile(chatty.Log.Path)
			if err != nil {
				t.Fatal(err)
			}
			entries = bytes.Count(data, []byte("\n"))
		}
		b.killMonitor()
		if i < 2 { // wakes "read x"
			b.typeInto(split, "\n")
		}
	}
	b.typeInto(terminal, "words\n")
	if err := b.Start(b.ctx, waiting.ID); err != nil {
		t.Errorf("Start of a container that was created before: %v", err)
	}
	for c, want := range map[*Container]int{&chatty: 7, &split: 8, &waiting: 9, &terminal: 10} {
		if e, err := b.Wait(b.ctx, c.ID); err != nil || e.Code != want {
			t.Errorf("Wait(%s) = %+v, %v; want code %d", c.ID, e, err, want)
		}
	}
	lines := b.logged(chatty)
	for i, l := range lines {
		if want := fmt.Sprintf("line %d\n", i); l != want {
			t.Fatalf("line %d of the log is %q, want %q", i, l, want)
		}
	}
	if len(lines) != n {
		t.Errorf("the log has %d lines, want %d", len(lines), n)
	}
	if got := strings.Join(b.logged(split), "|"); got != "begin-middle-end\n" {
		t.Errorf("a line interrupted by the monitor's death = %q, want it whole", got)
	}
	if got := strings.Join(b.logged(terminal), ""); !strings.Contains(got, "terminal got words\r\n") {
		t.Errorf("terminal's log = %q", got)
	}
}

// typeInto writes to the container's standard input.
func (b *box) typeInto(c Container, text string) {
	b.t.Helper()
	s, err := b.Attach(b.ctx, c.ID, true, false, false)
	for err != nil && strings.Contains(err.Error(), errLost.Error()) {
		s, err = b.Attach(b.ctx, c.ID, true, false, false)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Stdin.Write([]byte(text)); err != nil {
		b.t.Fatal(err)
	}
}

func TestBothDeadLosesTheContainer(t *testing.T) {
	b := newBox(t)
	c := b.container("sleep", "1000")
	done := b.container("sh", "-c", "exit 6")
	b.start(c)
	b.run(done)
	pid := b.state(c.ID).Pid
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b.killMonitor()
	b.Monitor = b.open()
	if e, err := b.Wait(b.ctx, c.ID); err != nil || e.Code != 137 {
		t.Errorf("Wait = %+v, %v; want code 137", e, err)
	}
	if e, err := b.Wait(b.ctx, done.ID); err != nil || e.Code != 6 {
		t.Errorf("Wait for one that had ended before = %+v, %v; want code 6", e, err)
	}
	if alive([]string{fmt.Sprint(pid)}) {
		t.Errorf("process %d goes on", pid)
	}
}

func TestBrokenStateFileIsSetAside(t *testing.T) {
	b := newBox(t)
	b.run(b.container("true"))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b.killMonitor()
	path := b.options().Dir + "/containers/broken.json"
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.Monitor = b.open()
	if states, err := b.List(b.ctx); err != nil || len(states) != 1 {
		t.Errorf("List = %+v, %v; want the one container that can be read", states, err)
	}
	if _, err := os.Stat(strings.TrimSuffix(path, ".json") + ".broken"); err != nil {
		t.Errorf("the broken file is not set aside: %v", err)
	}
}

func TestExecsOutliveTheMonitor(t *testing.T) {
	b := newBox(t)
	c := b.container("sleep", "1000")
	b.start(c)
	for name, terminal := range map[string]bool{"pipes": false, "terminal": true} {
		t.Run(name, func(t *testing.T) {
			p := &specs.Process{Args: []string{"sh", "-c", "echo up; read x; stty size; echo got $x; exit 6"}, Cwd: "/", Env: []string{"PATH=/bin"}, Terminal: terminal}
			_, s, err := b.Exec(b.ctx, c.ID, Exec{ID: name, Process: p, Stdin: true, Stdout: true, Stderr: !terminal})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			type result struct {
				Exit
				error
			}
			waited := make(chan result, 1)
			go func() {
				e, err := b.WaitExec(b.ctx, c.ID, name)
				waited <- result{e, err}
			}()
			for range 2 { // also a monitor that adopted it
				b.killMonitor()
				if _, err := b.List(b.ctx); err != nil { // until there is another
					t.Fatal(err)
				}
			}
			if err := b.Resize(b.ctx, c.ID, name, WindowSize{Width: 77, Height: 33}); (err == nil) != terminal {
				t.Errorf("Resize: %v", err)
			}
			if _, err := s.Stdin.Write([]byte("word\n")); err != nil {
				t.Fatal(err)
			}
			if out := b.read(s); !strings.Contains(out, "got word") || strings.Contains(out, "33 77") != terminal {
				t.Errorf("output %q", out)
			}
			if r := <-waited; r.error != nil || r.Code != 6 {
				t.Errorf("WaitExec: code %d, %v; want 6", r.Code, r.error)
			}
		})
	}
	// A client that comes later keeps them, too.
	p := &specs.Process{Args: []string{"sleep", "1000"}, Cwd: "/", Env: []string{"PATH=/bin"}}
	pid, s, err := b.Exec(b.ctx, c.ID, Exec{ID: "long", Process: p})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b.Monitor = b.open()
	b.killMonitor()
	if _, err := b.List(b.ctx); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if e, err := b.WaitExec(b.ctx, c.ID, "long"); err != nil || e.Code != 128+int(unix.SIGTERM) {
		t.Errorf("WaitExec of one from before: code %d, %v; want %d", e.Code, err, 128+int(unix.SIGTERM))
	}
}
