// Package api is the Supervisor API: HTTP in the form that services and the
// balena CLI know, on port 48484.
//
// It decodes, asks a Backend, and encodes. All routes are in one table. A key
// is checked before routing, so an unknown path does not tell strangers that
// it is unknown. Errors go through one place: a lock that is held is 423,
// everything else 503, as clients of this API expect.
//
// One answer says more than the original's: /v2/state/status has "error" while
// the target cannot be reached, "undone" if it was given up for the one before,
// "trial" with the seconds that it has still to work, and for containers
// "health", "exitCode" and "restarts" where there are any.
package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/supervisor/cloud"
	"github.com/minke-os/minke/supervisor/host"
	"github.com/minke-os/minke/supervisor/lock"
	"github.com/minke-os/minke/supervisor/logs"
	"github.com/minke-os/minke/supervisor/model"
	"github.com/minke-os/minke/supervisor/plan"
)

// A Backend is the supervisor as the API needs it. Methods that act return
// when the action is complete.
type Backend interface {
	Open() bool
	Scope(key string) (Scope, bool)
	Healthy() bool
	Device() Device
	Target() model.Target
	Status(context.Context) (Status, error)
	SetLocalTarget(ctx context.Context, body []byte) error
	Update(force, cancel bool) bool
	RestartApp(ctx context.Context, app model.AppID, force bool) error
	PurgeApp(ctx context.Context, app model.AppID, force bool) error
	StopService(ctx context.Context, c plan.Container, force bool) error
	StartService(ctx context.Context, c plan.Container) error
	RestartService(ctx context.Context, c plan.Container, force bool) error
	CleanupVolumes(context.Context) error
	Locks() ([]lock.Held, error)
	HoldLocks(ctx context.Context, app model.AppID, services []string, force bool) error
	FreeLocks(ctx context.Context, app model.AppID, services []string, force bool) error
	StreamLogs(ctx context.Context, o logs.Options, emit func(logs.Message) error) error

	Blink()
	NewKey(old string) (string, error)
	Reboot(ctx context.Context, force bool) error
	Shutdown(ctx context.Context, force bool) error
	HostConfig() (HostConfig, error)
	SetHostConfig(ctx context.Context, c HostChange, force bool) error
	Tags(context.Context) ([]cloud.Tag, error)
	SetTags(map[string]string) error
	VPN(context.Context) (enabled, connected bool)
	Journal(ctx context.Context, o host.JournalOptions, w io.Writer) error
	Metrics() map[string]any
}

// A Scope is what a key may act on.
type Scope struct {
	Global bool
	App    model.AppID
	Device bool // and on the device as such: reboot, name, proxy
}

func (s Scope) allows(app model.AppID) bool { return s.Global || s.App == app }

// A Device is what the API says of the device.
type Device struct {
	Name, Type, Arch, OSVersion string
	Port, Version               string
	IPs, MACs                   []string
}

// A Status is what runs and what is on its way.
type Status struct {
	Applying   bool
	Failed     bool
	Problem    string
	Undone     bool          // the target before is applied
	Trial      time.Duration // that is left of one; 0 without
	Containers []Container
	Missing    []Missing
	Images     []Image
	Commits    []Commit
	Reasons    map[string]Reason // by plan.ServiceKey
}

// A Reason is why a service was stopped or replaced last.
type Reason struct {
	Why string
	At  time.Time
}

// A Container is one container and its place in a release.
type Container struct {
	plan.Container
	Status       string
	ReleaseImage int // the release's number for the image
	Release      int
	Commit       string
}

// A Missing is a service without a container.
type Missing struct {
	App     model.AppID
	Service string
	Status  string
}

// An Image is an image of the target.
type Image struct {
	Name         string
	App          model.AppID
	Service      string
	ReleaseImage int
	EngineID     string
	Status       string
	Progress     *int   // per cent, nil when there is none
	Problem      string // why it does not come
}

// A Commit is the release of an application that has settled last.
type Commit struct {
	App    model.AppID
	Commit string
}

const maxBody = 10 << 20

// A server answers requests.
type server struct {
	b     Backend
	log   *slog.Logger
	wrong chan struct{} // one for each wrong key that waits for its answer
}

// Who guesses keys gets an answer each wrongPause, at most wrongKeys at once. A
// right key never waits.
const (
	wrongPause = 250 * time.Millisecond
	wrongKeys  = 8
)

// A request is one with its body and what its key allows.
type request struct {
	*http.Request
	scope Scope
	body  map[string]any
	raw   []byte
}

func (r *request) force() bool { return model.Truthy(r.body["force"]) }

type handler func(http.ResponseWriter, *request) error

// New makes the handler of the API.
func New(b Backend, log *slog.Logger) http.Handler {
	s := &server{b, log, make(chan struct{}, wrongKeys)}
	mux := http.NewServeMux()
	for pattern, h := range s.routes() {
		mux.Handle(pattern, s.adapt(h))
	}
	return s.authorize(mux)
}

func (s *server) routes() map[string]handler {
	return map[string]handler{
		"GET /ping":       s.ping,
		"GET /v1/healthy": s.healthy,

		"GET /v1/device":            s.device,
		"GET /v1/apps/{app}":        s.app,
		"POST /v1/apps/{app}/stop":  s.appStop,
		"POST /v1/apps/{app}/start": s.appStart,
		"POST /v1/restart":          s.restart,
		"POST /v1/purge":            s.purge,
		"POST /v1/update":           s.update,

		"POST /v1/blink":               s.blink,
		"POST /v1/regenerate-api-key":  s.regenerateKey,
		"POST /v1/reboot":              s.reboot,
		"POST /v1/shutdown":            s.shutdown,
		"GET /v1/device/host-config":   s.hostConfig,
		"PATCH /v1/device/host-config": s.setHostConfig,
		"GET /v2/device/tags":          s.tags,
		"PATCH /v2/device/tags":        s.setTags,
		"GET /v2/device/vpn":           s.vpn,
		"POST /v2/journal-logs":        s.forDevice(s.journalLogs),
		"GET /v2/device/metrics":       s.deviceMetrics, // ours
		"GET /metrics":                 s.metrics,       // ours

		"GET /v2/version":                             s.version,
		"GET /v2/device/name":                         s.deviceName,
		"GET /v2/state/status":                        s.stateStatus,
		"GET /v2/applications/state":                  s.appsState,
		"GET /v2/applications/{app}/state":            s.appState,
		"POST /v2/applications/{app}/restart-service": s.restartService,
		"POST /v2/applications/{app}/stop-service":    s.stopService,
		"POST /v2/applications/{app}/start-service":   s.startService,
		"POST /v2/applications/{app}/restart":         s.restartApp,
		"POST /v2/applications/{app}/purge":           s.purgeApp,
		"GET /v2/containerId":                         s.containerID,
		"GET /v2/cleanup-volumes":                     s.cleanupVolumes,
		"GET /v2/locks":                               s.locks,    // ours
		"POST /v2/applications/{app}/lock":            s.holdLock, // ours
		"DELETE /v2/applications/{app}/lock":          s.freeLock, // ours

		"GET /v2/local/target-state":  s.forDevice(s.localTarget),
		"POST /v2/local/target-state": s.forDevice(s.setLocalTarget),
		"GET /v2/local/device-info":   s.deviceInfo,
		"GET /v2/local/logs":          s.forDevice(s.localLogs),

		"/": s.unknown,
	}
}

type scopeKey struct{}

// authorize lets through whoever has a key; probes need none.
func (s *server) authorize(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scope, ok, key := Scope{Global: true}, true, apiKey(r)
		if !s.b.Open() && r.URL.Path != "/ping" && r.URL.Path != "/v1/healthy" {
			scope, ok = s.b.Scope(key)
		}
		if !ok {
			s.turnAway(w, r, key != "")
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), scopeKey{}, scope)))
	})
}

func (s *server) turnAway(w http.ResponseWriter, r *http.Request, guessed bool) {
	if guessed {
		select {
		case s.wrong <- struct{}{}:
			defer func() { <-s.wrong }()
		default:
			w.Header().Set("Retry-After", "1")
			text(w, http.StatusTooManyRequests, "Too many wrong keys")
			return
		}
		select {
		case <-time.After(wrongPause):
		case <-r.Context().Done():
		}
	}
	text(w, http.StatusUnauthorized, "Unauthorized")
}

var bearer = regexp.MustCompile(`(?i)^(?:bearer|apikey)\s+(\w+)$`)

// apiKey prefers the query's key to the header's.
func apiKey(r *http.Request) string {
	if k := r.URL.Query().Get("apikey"); k != "" {
		return k
	}
	if m := bearer.FindStringSubmatch(r.Header.Get("Authorization")); m != nil {
		return m[1]
	}
	return ""
}

// adapt reads the body and writes the error.
func (s *server) adapt(h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, hr *http.Request) {
		scope, _ := hr.Context().Value(scopeKey{}).(Scope)
		r := &request{Request: hr, scope: scope}
		err := r.read(w)
		if err == nil {
			err = h(w, r)
		}
		if err != nil {
			s.fail(w, r, err)
		}
		s.log.Debug("request", "method", hr.Method, "path", hr.URL.Path)
	})
}

func (r *request) read(w http.ResponseWriter) error {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return err
	}
	r.raw, r.body = raw, map[string]any{}
	if len(bytes.TrimSpace(raw)) == 0 {
		return nil
	}
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		return r.readForm()
	}
	return json.Unmarshal(raw, &r.body)
}

func (r *request) readForm() error {
	form, err := url.ParseQuery(string(r.raw))
	for k := range form {
		r.body[k] = form.Get(k)
	}
	return err
}

// A reply is an error with an exact answer: this API mixes JSON and text, and
// clients compare both.
type reply struct {
	status int
	text   string // sent as text unless json
	json   bool
}

func (e *reply) Error() string { return e.text }

func textError(status int, format string, args ...any) error {
	return &reply{status, fmt.Sprintf(format, args...), false}
}

func jsonError(status int, format string, args ...any) error {
	return &reply{status, fmt.Sprintf(format, args...), true}
}

func (s *server) fail(w http.ResponseWriter, r *request, err error) {
	if r.Context().Err() != nil { // nobody listens
		return
	}
	if rep, ok := errors.AsType[*reply](err); ok {
		if !rep.json {
			text(w, rep.status, rep.text)
			return
		}
		write(w, rep.status, failed(rep.text))
		return
	}
	status := http.StatusServiceUnavailable
	if errdef.Is(err, errdef.Busy) {
		status = http.StatusLocked
	}
	s.log.Info("request failed", "method", r.Method, "path", r.URL.Path, "status", status, "err", err)
	write(w, status, failed(err.Error()))
}

type failure struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

func failed(message string) failure { return failure{"failed", message} }

func write(w http.ResponseWriter, status int, v any) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(fmt.Sprintf("encode %T: %v", v, err)) // our own types
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	w.Write(bytes.TrimRight(buf.Bytes(), "\n"))
}

func text(w http.ResponseWriter, status int, s string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	io.WriteString(w, s)
}

func ok(w http.ResponseWriter) error {
	text(w, http.StatusOK, "OK")
	return nil
}

func (s *server) unknown(w http.ResponseWriter, r *request) error {
	return textError(http.StatusNotFound, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>Error</title>\n</head>\n<body>\n<pre>Cannot %s %s</pre>\n</body>\n</html>\n",
		r.Method, html.EscapeString(r.URL.Path))
}

func (s *server) ping(w http.ResponseWriter, _ *request) error { return ok(w) }

func (s *server) healthy(w http.ResponseWriter, _ *request) error {
	if !s.b.Healthy() {
		return textError(http.StatusInternalServerError, "Unhealthy")
	}
	return ok(w)
}
