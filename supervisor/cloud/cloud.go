// Package cloud is the link to a fleet server that speaks balena's device API:
// balenaCloud, openBalena, or another.
//
//	provision   register the device, once
//	introduce   tell the settings that the device came with, once
//	pin         name the release that it came with, once
//	poll        ask for the target state
//	report      say what runs
//	logs        send what containers and the supervisor say
//	tags        send the device's tags
//	delta       ask for what makes one image of another, when told to
//
// A Link only carries: what a target means and what a report says is its
// Device's business. Without a network it waits and tries again, ever less
// often; nothing else waits for it. It keeps nothing on disk. Run returns when
// all that it started has ended.
//
// Paths, fields, intervals and statuses are those of balena-supervisor 19 and
// the open-balena API.
package cloud

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/supervisor/logs"
)

// An Identity is what config.json says of the device and its server.
type Identity struct {
	Endpoint     string // of the API, such as https://api.example
	LogsEndpoint string // of the log stream; Endpoint if empty
	// DeltaEndpoint is of the server that makes deltas; "" for none.
	DeltaEndpoint string
	UUID          string
	Key           string // the device's own
	Provisioning  string // key to register with; gone afterwards
	Fleet         int    // application
	DeviceType    string
	ID            int  // the server's number of the device, 0 before registration
	Registered    bool // all of it is done
}

// Settings are what the target state says of the link itself.
type Settings struct {
	Interval time.Duration // between polls
	Instant  bool          // poll at once at the start, and when told to
	Logs     bool          // send logs
	Timeout  time.Duration // of a request
}

// A Device is who is linked. Its methods are called from several goroutines.
type Device interface {
	Identity() Identity
	// Registered keeps what registration gave.
	Registered(id int) error
	// Reborn makes another identity, for a server that does not know this one
	// and will not have it.
	Reborn() error
	// Pin is the release, and its fleet, that the server is to keep the device
	// in; commit is empty if there is none. Pinned says that the server knows, or
	// has no such release.
	Pin() (fleet int, commit string)
	Pinned() error
	Settings() Settings
	// SetTarget takes the answer to a poll. An error means that it is refused.
	SetTarget(body []byte) error
	// Introduction is what the server is told of a device that it does not
	// know; Introduced says that it does now.
	Introduction() (intro Introduction, known bool)
	Introduced() error
	// Report is the current state, in the server's fields.
	Report() map[string]any
	// Tags are those that the server has not got yet; Tagged says that it has.
	Tags() map[string]string
	Tagged(map[string]string) error
	// Logs sends lines that are younger than since, and follows.
	Logs(ctx context.Context, since time.Time, emit func(logs.Message) error) error
}

// Config is what a Link is made of. Device is needed.
type Config struct {
	Device     Device
	Transport  http.RoundTripper
	UserAgent  string
	Supervisor string // version
	OSVersion  string
	OSVariant  string
	MAC        func() string
	Logger     *slog.Logger
	// System tells people, where they look at logs.
	System func(text string)
}

// A Link is made by New and works in Run.
type Link struct {
	cfg     Config
	log     *slog.Logger
	http    http.Client
	made    time.Time     // lines are sent from then on
	asked   chan struct{} // capacity 1: poll now
	stirred chan struct{} // capacity 1: something to report
	tagged  chan struct{} // capacity 1: tags to send
	pinned  chan struct{} // closed when the server may be asked for the target

	mu       sync.Mutex
	lastPoll time.Time // that was answered
	etag     string
	force    bool
	back     chan struct{} // closed and replaced when the network is back
}

// New makes a link that does nothing yet.
func New(cfg Config) *Link {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.System == nil {
		cfg.System = func(string) {}
	}
	if cfg.Transport == nil {
		cfg.Transport = transport()
	}
	return &Link{
		cfg: cfg, log: cfg.Logger, http: http.Client{Transport: cfg.Transport}, made: time.Now(),
		asked: make(chan struct{}, 1), stirred: make(chan struct{}, 1), tagged: make(chan struct{}, 1),
		pinned: make(chan struct{}), back: make(chan struct{}),
	}
}

// deadAfter is how long a connection lives on whose other end confirms nothing.
// The kernel's own patience is a quarter of an hour, and what is sent meanwhile
// is lost.
const deadAfter = 10 * time.Second

// transport is the usual one, which gives dead connections up.
func transport() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	d := net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second, Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) { err = giveUpAfter(int(fd), deadAfter) })
		return errors.Join(cerr, err)
	}}
	t.DialContext = d.DialContext
	return t
}

// Run registers the device if need be, and then keeps the link until ctx ends.
func (l *Link) Run(ctx context.Context) error {
	if !l.provision(ctx) {
		return nil
	}
	l.mu.Lock()
	l.lastPoll = time.Now()
	l.mu.Unlock()
	g, ctx := errgroup.WithContext(ctx)
	for _, f := range []func(context.Context){l.introduce, l.poll, l.report, l.sendLogs, l.sendTags} {
		g.Go(func() error { f(ctx); return nil })
	}
	return g.Wait()
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Poll asks for the target state now.
func (l *Link) Poll() { poke(l.asked) }

// Reconnected tells that this host has a network again, after a time in which it
// had none. What waits after failures that came of it is tried now. It is not for a server
// that was away: its whole fleet would come at once.
func (l *Link) Reconnected() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.back)
	l.back = make(chan struct{})
	l.Poll()
}

// pauseAfter waits after a failure. What the server answered, it will answer again with a
// network, too.
func (l *Link) pauseAfter(ctx context.Context, err error, d time.Duration) bool {
	l.mu.Lock()
	back := l.back
	l.mu.Unlock()
	if statusOf(err) != 0 {
		back = nil
	}
	return pause(ctx, d, back)
}

// Stirred tells that the report may differ.
func (l *Link) Stirred() { poke(l.stirred) }

// TagsChanged tells that there are tags to send.
func (l *Link) TagsChanged() { poke(l.tagged) }

// Healthy reports whether a poll was answered within two intervals.
func (l *Link) Healthy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lastPoll.IsZero() || time.Since(l.lastPoll) < 2*l.cfg.Device.Settings().Interval+jitter
}

// jitter is the most that is added to an interval, so that a fleet that lost
// its server does not come back as one.
const jitter = time.Minute

// firstRetry is the delay after one failure; it doubles with each more.
const firstRetry = 15 * time.Second

func backOff(failures int, limit time.Duration) time.Duration {
	return min(firstRetry<<min(failures-1, 20), limit)
}

// pause waits, unless one of the channels has something. It reports whether ctx
// still holds.
func pause(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-wake:
	}
	return ctx.Err() == nil
}

// A refusal is an answer that is no success.
type refusal struct {
	status int
	text   string
	after  time.Duration // Retry-After
}

func (r *refusal) Error() string {
	return strings.TrimSpace(fmt.Sprintf("the server answers %d %s %s", r.status, http.StatusText(r.status), r.text))
}

// maxAnswer is the most that is read of an answer, in bytes.
const maxAnswer = 32 << 20

// call makes a request of the API. A body that is not nil is sent as JSON.
func (l *Link) call(ctx context.Context, method, path, key string, body any, header http.Header) (*http.Response, []byte, error) {
	id := l.cfg.Device.Identity()
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(l.cfg.Device.Settings().Timeout, time.Minute))
	defer cancel()
	var in io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, nil, err
		}
		in = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(id.Endpoint, "/")+path, in)
	if err != nil {
		return nil, nil, errdef.Invalid.Errorf("apiEndpoint in config.json: %w", err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("Authorization", "Bearer "+cmp.Or(key, id.Key))
	req.Header.Set("User-Agent", l.cfg.UserAgent)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := l.http.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, nil, err
	}
	if len(data) > maxAnswer {
		return nil, nil, errdef.Invalid.Errorf("the server's answer is larger than %d bytes", maxAnswer)
	}
	if resp.StatusCode >= 300 && resp.StatusCode != http.StatusNotModified {
		seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After")) // a date, or nonsense, is no wish
		return resp, data, &refusal{resp.StatusCode, string(data[:min(len(data), 200)]), time.Duration(seconds) * time.Second}
	}
	return resp, data, nil
}

func statusOf(err error) int {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.status
	}
	return 0
}

// poll asks for the target state, again and again.
func (l *Link) poll(ctx context.Context) {
	if !l.pin(ctx) {
		return
	}
	close(l.pinned)
	failures := 0
	if s := l.cfg.Device.Settings(); !s.Instant && !pause(ctx, s.Interval, l.asked) {
		return
	}
	for {
		err := l.pollOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		interval := l.cfg.Device.Settings().Interval
		wait := interval + rand.N(jitter)
		if err != nil {
			failures++
			wait = backOff(failures, interval)
			l.log.Warn("poll the target state", "err", err, "retry", wait)
		} else {
			failures = 0
		}
		if !pause(ctx, wait, l.asked) {
			return
		}
	}
}

func (l *Link) pollOnce(ctx context.Context) error {
	id := l.cfg.Device.Identity()
	l.mu.Lock()
	header := http.Header{}
	if l.etag != "" {
		header.Set("If-None-Match", l.etag)
	}
	l.mu.Unlock()
	resp, body, err := l.call(ctx, http.MethodGet, "/device/v3/"+id.UUID+"/state", "", nil, header)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.lastPoll = time.Now()
	l.mu.Unlock()
	if resp.StatusCode == http.StatusNotModified {
		return nil
	}
	if err := l.cfg.Device.SetTarget(body); err != nil {
		// It will not get better by being fetched again; what runs goes on.
		l.log.Error("the target state is refused", "err", err)
		for line := range strings.Lines(err.Error()) {
			l.cfg.System("Could not move to new release: " + strings.TrimSpace(line))
		}
	}
	l.mu.Lock()
	l.etag = resp.Header.Get("ETag")
	l.mu.Unlock()
	return nil
}
