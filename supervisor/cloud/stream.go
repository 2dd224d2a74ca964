package cloud

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/minke-os/minke/supervisor/logs"
)

const (
	logRetry    = 5 * time.Second // after one failure; it doubles with each more
	maxLogRetry = 5 * time.Minute
	logFlush    = 100 * time.Millisecond // a line waits no longer
	logIdle     = time.Minute            // without a line a stream is closed
	// rewind is how much of what was sent last is sent again after a stream
	// was ended: nobody confirms lines. A dead connection takes bytes for as
	// long as deadAfter says.
	rewind = 2 * time.Second
)

// sendLogs keeps one stream of lines to the server. The engine keeps what
// cannot be sent, so a line that is dead for an hour loses nothing that the
// containers' logs still have.
func (l *Link) sendLogs(ctx context.Context) {
	failures := 0
	since := l.made.Add(-time.Millisecond) // what is said in that very one counts
	for ctx.Err() == nil {
		if !l.cfg.Device.Settings().Logs {
			since = time.Now()
			if !pause(ctx, logIdle, nil) {
				return
			}
			continue
		}
		s := &stream{l: l, ctx: ctx, last: since}
		err := l.cfg.Device.Logs(ctx, since, s.emit)
		s.close(nil)
		if ctx.Err() != nil {
			return
		}
		if s.sent {
			failures = 0
		}
		since = s.cursor()
		failures++
		wait := min(logRetry<<min(failures-1, 20), maxLogRetry)
		l.log.Info("log stream ended", "err", err, "retry", wait)
		if !l.pauseAfter(ctx, err, wait) {
			return
		}
	}
}

// A stream is one request whose body grows.
type stream struct {
	l   *Link
	ctx context.Context // of the one call that this is made for

	mu      sync.Mutex // guards the rest
	cancel  context.CancelFunc
	pipe    *io.PipeWriter
	zip     *zipper
	enc     *json.Encoder
	ended   chan error // the server's answer, which means that it wants no more
	flusher *time.Timer
	idle    *time.Timer
	last    time.Time // of the last line that went
	sent    bool
	dead    bool // the stream ended without a word of the server
}

// A line is one as the server takes it.
type line struct {
	Message   string `json:"message"`
	Timestamp int64  `json:"timestamp"`
	IsSystem  bool   `json:"isSystem,omitempty"`
	IsStdErr  bool   `json:"isStdErr,omitempty"`
	ServiceID int    `json:"serviceId,omitempty"`
}

var errLogsOff = errors.New("logs are switched off")

// emit sends a line, opening the stream if it is closed.
func (s *stream) emit(m logs.Message) error {
	if !s.l.cfg.Device.Settings().Logs {
		return errLogsOff
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pipe == nil {
		if err := s.openLocked(); err != nil {
			return err
		}
	}
	select {
	case err := <-s.ended:
		_, answered := errors.AsType[*refusal](err)
		s.dead = !answered
		s.closeLocked()
		return err
	default:
	}
	if err := s.enc.Encode(line{m.Message, m.Timestamp, m.IsSystem, m.IsStdErr, m.ServiceID}); err != nil {
		s.dead = true
		s.closeLocked()
		return err
	}
	s.last, s.sent = time.UnixMilli(max(m.Timestamp, s.last.UnixMilli())), true
	s.flusher.Reset(logFlush)
	s.idle.Reset(logIdle)
	return nil
}

func (s *stream) openLocked() error {
	id := s.l.cfg.Device.Identity()
	ctx, cancel := context.WithCancel(s.ctx)
	r, w := io.Pipe()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(cmp.Or(id.LogsEndpoint, id.Endpoint), "/")+"/device/v2/"+id.UUID+"/log-stream", r)
	if err != nil {
		cancel()
		return err
	}
	req.Header.Set("Authorization", "Bearer "+id.Key)
	req.Header.Set("User-Agent", s.l.cfg.UserAgent)
	req.Header.Set("Content-Type", "application/x-ndjson")
	req.Header.Set("Content-Encoding", "gzip")
	s.cancel, s.pipe, s.zip = cancel, w, &zipper{w: w}
	s.enc = json.NewEncoder(s.zip)
	s.enc.SetEscapeHTML(false)
	ended := make(chan error, 1)
	s.ended = ended
	go func() {
		resp, err := s.l.http.Do(req)
		if err == nil {
			resp.Body.Close()
			err = &refusal{status: resp.StatusCode}
		}
		ended <- err
		r.CloseWithError(err)
	}()
	s.flusher = time.AfterFunc(time.Hour, s.flush)
	s.idle = time.AfterFunc(logIdle, func() { s.close(w) })
	return nil
}

func (s *stream) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.zip != nil {
		s.zip.Flush() // the next emit hears of an error
	}
}

// close ends the request as a whole one, so that nothing of it is lost. only
// names the one that is meant, nil any.
func (s *stream) close(only *io.PipeWriter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pipe != nil && (only == nil || only == s.pipe) {
		s.zip.Close()
		s.pipe.Close()
		s.waitLocked()
		s.closeLocked()
	}
}

// lastWords is how long the server may take to answer a stream that was ended.
const lastWords = 5 * time.Second

func (s *stream) waitLocked() {
	timer := time.NewTimer(lastWords)
	defer timer.Stop()
	select {
	case <-s.ended:
	case <-timer.C:
	}
}

func (s *stream) closeLocked() {
	s.cancel()
	s.pipe.CloseWithError(context.Canceled)
	s.flusher.Stop()
	s.idle.Stop()
	s.pipe, s.zip, s.enc = nil, nil, nil
}

// cursor is from where to go on.
func (s *stream) cursor() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.sent:
		return s.last
	case s.dead:
		return s.last.Add(-rewind - deadAfter)
	}
	return s.last.Add(-rewind)
}
