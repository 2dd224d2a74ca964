package logs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minke-os/minke/runtime/jsonlog"
)

// asJournalctlPrints has the fields in question of what journalctl prints.
const asJournalctlPrints = `{"__REALTIME_TIMESTAMP":"1767323045000006","PRIORITY":"6","SYSLOG_TIMESTAMP":"2026-01-02T03:04:05.000000006Z","MESSAGE":"hello","_TRANSPORT":"journal"}
{"__REALTIME_TIMESTAMP":"1767323046000000","PRIORITY":"3","MESSAGE":[104,255],"CONTAINER_PARTIAL_MESSAGE":"true"}
{"__REALTIME_TIMESTAMP":"1767323047000000","PRIORITY":"6","MESSAGE":["a","b"]}
`

// fakeJournalctl puts a program on the PATH that prints what one prints, and
// its arguments into the file that is returned.
func fakeJournalctl(t *testing.T, then string) (arguments string) {
	t.Helper()
	dir := t.TempDir()
	data, arguments := filepath.Join(dir, "data"), filepath.Join(dir, "arguments")
	script := fmt.Sprintf("#!/bin/sh\necho \"$@\" >%s\ncat %s\n%s\n", arguments, data, then)
	for name, content := range map[string]string{data: asJournalctlPrints, filepath.Join(dir, "journalctl"): script} {
		if err := os.WriteFile(name, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return arguments
}

func readJournal(t *testing.T, o Options) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var got []string
	err := ReadJournal(ctx, "abc", o, func(e jsonlog.Entry) error {
		got = append(got, fmt.Sprintf("%s %d %q", e.Stream, e.Time.Nanosecond(), e.Line))
		return nil
	})
	if err != nil || ctx.Err() != nil {
		t.Fatalf("ReadJournal = %v, %v", err, ctx.Err())
	}
	return got
}

func TestJournalIsReadBack(t *testing.T) {
	arguments := fakeJournalctl(t, "")
	got := readJournal(t, Options{Tail: 5, Since: at(0), Until: at(1)})
	want := `[stdout 6 "hello\n" stderr 0 "h\xff" stdout 0 "\n"]`
	if fmt.Sprint(got) != want {
		t.Errorf("entries = %v, want %s", got, want)
	}
	asked, _ := os.ReadFile(arguments)
	for _, want := range []string{"--lines=5", "--since=@1714564800.000000", "--until=@1714564801.000000", "CONTAINER_ID_FULL=abc"} {
		if !strings.Contains(string(asked), want) {
			t.Errorf("journalctl %s; want %s", asked, want)
		}
	}
}

func TestFollowingTheJournalEndsWithTheContainer(t *testing.T) {
	fakeJournalctl(t, "exec sleep 600")
	ended := make(chan struct{})
	close(ended)
	if got := readJournal(t, Options{Tail: -1, Follow: ended}); len(got) != 3 {
		t.Errorf("entries = %v, want three", got)
	}
}
