package logs

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"time"

	"github.com/minke-os/minke/runtime/jsonlog"
)

// quiet is how long journalctl --follow may say nothing after the container
// ended before its output counts as complete.
const quiet = 500 * time.Millisecond

// HasJournal says why the journal cannot be read, if it cannot.
func HasJournal() error {
	if _, err := exec.LookPath("journalctl"); err != nil {
		return fmt.Errorf("reading the journal needs journalctl on the host: %w", err)
	}
	return nil
}

// ReadJournal is Read for a container that logs to journald.
func ReadJournal(ctx context.Context, id string, o Options, each func(jsonlog.Entry) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, "journalctl", journalArgs(id, o)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("read the journal: %w", err)
	}
	heard := make(chan struct{}, 1)
	if o.Follow != nil {
		go endFollowing(ctx, cancel, o, heard)
	}
	err = journalEntries(out, func(e jsonlog.Entry) error {
		select {
		case heard <- struct{}{}:
		default:
		}
		return each(e)
	})
	cancel() // each may have given up
	cmd.Wait()
	return err
}

// endFollowing cancels when the container has ended and the journal says
// nothing more, or when Until has come.
func endFollowing(ctx context.Context, cancel func(), o Options, heard <-chan struct{}) {
	defer cancel()
	if !o.Until.IsZero() {
		var stop func()
		ctx, stop = context.WithDeadline(ctx, o.Until)
		defer stop()
	}
	select {
	case <-o.Follow:
	case <-ctx.Done():
		return
	}
	for {
		select {
		case <-heard:
		case <-time.After(quiet):
			return
		case <-ctx.Done():
			return
		}
	}
}

func journalArgs(id string, o Options) []string {
	args := []string{"--output=json", "--all", "--no-pager", "--quiet"}
	if o.Tail >= 0 {
		args = append(args, "--lines="+strconv.Itoa(o.Tail))
	} else {
		args = append(args, "--lines=all")
	}
	for flag, t := range map[string]time.Time{"--since": o.Since, "--until": o.Until} {
		if !t.IsZero() && !(flag == "--until" && o.Follow != nil) {
			args = append(args, fmt.Sprintf("%s=@%d.%06d", flag, t.Unix(), t.Nanosecond()/1000))
		}
	}
	if o.Follow != nil {
		args = append(args, "--follow")
	}
	return append(args, "CONTAINER_ID_FULL="+id)
}

// journalEntries reads what journalctl --output=json prints.
func journalEntries(r io.Reader, each func(jsonlog.Entry) error) error {
	dec := json.NewDecoder(bufio.NewReader(r))
	for {
		var m map[string]json.RawMessage
		if dec.Decode(&m) != nil {
			return nil // the end
		}
		if err := each(journalEntry(m)); err != nil {
			return err
		}
	}
}

func journalEntry(m map[string]json.RawMessage) jsonlog.Entry {
	e := jsonlog.Entry{Stream: "stdout", Line: journalBytes(m["MESSAGE"]), Attrs: map[string]string{}}
	if string(journalBytes(m["PRIORITY"])) == "3" {
		e.Stream = "stderr"
	}
	if string(journalBytes(m["CONTAINER_PARTIAL_MESSAGE"])) != "true" {
		e.Line = append(e.Line, '\n')
	}
	var err error
	if e.Time, err = time.Parse(time.RFC3339Nano, string(journalBytes(m["SYSLOG_TIMESTAMP"]))); err != nil {
		us, _ := strconv.ParseInt(string(journalBytes(m["__REALTIME_TIMESTAMP"])), 10, 64)
		e.Time = time.UnixMicro(us)
	}
	return e
}

// journalBytes is a field: a string, or an array of numbers where it is no
// UTF-8.
func journalBytes(raw json.RawMessage) []byte {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return []byte(s)
	}
	var numbers []int
	if json.Unmarshal(raw, &numbers) != nil {
		return nil
	}
	out := make([]byte, len(numbers))
	for i, n := range numbers {
		out[i] = byte(n)
	}
	return out
}
