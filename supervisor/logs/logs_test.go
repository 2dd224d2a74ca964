package logs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/supervisor/client"
	"github.com/minke-os/minke/supervisor/plan"
)

// An engine that has fixed logs, and follows forever without a line.
type engine map[string]string

func (e engine) ContainerLogs(ctx context.Context, id string, o client.ContainerLogsOptions) (client.ContainerLogsResult, error) {
	if o.Follow {
		r, _ := io.Pipe()
		return r, nil
	}
	return io.NopCloser(strings.NewReader(e[id])), nil
}

func frame(stream byte, text string) string {
	head := make([]byte, 8)
	head[0] = stream
	binary.BigEndian.PutUint32(head[4:], uint32(len(text)))
	return string(head) + text
}

func TestHistoryIsMergedByTime(t *testing.T) {
	h := New(engine{
		"a": frame(1, "2026-01-01T00:00:01Z one\n") + frame(2, "2026-01-01T00:00:03Z three\n"),
		"b": "2026-01-01T00:00:02Z two\r\n",
	})
	h.Containers([]plan.Container{{ID: "a", Service: "web", ServiceID: 4}, {ID: "b", Service: "db", TTY: true}})
	var got []Message
	if err := h.Stream(t.Context(), Options{Tail: -1}, func(m Message) error { got = append(got, m); return nil }); err != nil {
		t.Fatal(err)
	}
	want := []Message{
		{ServiceName: "web", ServiceID: 4, Message: "one", Timestamp: 1767225601000},
		{ServiceName: "db", Message: "two", Timestamp: 1767225602000},
		{ServiceName: "web", ServiceID: 4, Message: "three", Timestamp: 1767225603000, IsStdErr: true},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Stream = %+v\nwant %+v", got, want)
	}
}

func TestFollowersHearTheSupervisorUntilTheyLeave(t *testing.T) {
	testenv.NoGoroutineLeft(t)
	synctest.Test(t, func(t *testing.T) {
		h := New(engine{})
		h.Containers([]plan.Container{{ID: "a", Service: "web", State: "running"}})
		ctx, cancel := context.WithCancel(t.Context())
		var got []string
		done := make(chan error)
		go func() {
			done <- h.Stream(ctx, Options{Follow: true}, func(m Message) error { got = append(got, m.Message); return nil })
		}()
		synctest.Wait()
		for i := range 3 {
			h.System(fmt.Sprint("news ", i))
			synctest.Wait()
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Stream = %v", err)
		}
		if want := []string{"news 0", "news 1", "news 2"}; !reflect.DeepEqual(got, want) {
			t.Errorf("heard %q, want %q", got, want)
		}
	})
}

func TestAListenerThatFailsEndsTheStream(t *testing.T) {
	h := New(engine{})
	h.System("news")
	gone := errors.New("gone")
	if err := h.Stream(t.Context(), Options{Tail: -1, Follow: true}, func(Message) error { return gone }); !errors.Is(err, gone) {
		t.Errorf("Stream = %v, want the listener's error", err)
	}
}

func TestTheRingIsBounded(t *testing.T) {
	h := New(engine{})
	for i := range 10 * ringSize {
		h.System(fmt.Sprint(i))
	}
	if len(h.ring) != ringSize || h.ring[ringSize-1].Message != fmt.Sprint(10*ringSize-1) {
		t.Errorf("the ring has %d messages, the last %q", len(h.ring), h.ring[len(h.ring)-1].Message)
	}
}

func TestLongLinesAreCut(t *testing.T) {
	m := parse("2026-01-01T00:00:01Z " + strings.Repeat("x", 2*maxLine))
	if want := strings.Repeat("x", maxLine-len(ellipsis)) + ellipsis; m.Message != want {
		t.Errorf("message of %d bytes, want %d", len(m.Message), len(want))
	}
}

func TestSinceIsAfterTheLastLine(t *testing.T) {
	last := time.Date(2026, 1, 1, 0, 0, 1, 5_000_000, time.UTC)
	if got, want := fraction(last), "1767225601.005999999"; got != want {
		t.Errorf("since = %s, want %s", got, want)
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte(frame(1, "2026-01-01T00:00:01Z a\n") + frame(2, "b")))
	f.Add([]byte{1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		total := 0
		readFrames(bytes.NewReader(data), func(s string, _ bool) { total += len(parse(s).Message) })
		if total > len(data)+len("[...]") {
			t.Errorf("%d bytes of lines from %d bytes", total, len(data))
		}
	})
}
