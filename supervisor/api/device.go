package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/supervisor/host"
	"github.com/minke-os/minke/supervisor/model"
)

// A HostConfig is the part of the host that applications may change.
type HostConfig struct {
	Hostname string
	Proxy    *host.Proxy // nil without one
}

// A HostChange is what somebody wants to change of it.
type HostChange struct {
	Hostname *string // nil leaves it
	HasProxy bool
	Proxy    *host.Proxy // nil removes it, if HasProxy
}

func (s *server) blink(w http.ResponseWriter, _ *request) error {
	s.b.Blink()
	return ok(w)
}

func (s *server) regenerateKey(w http.ResponseWriter, r *request) error {
	key, err := s.b.NewKey(apiKey(r.Request))
	if err != nil {
		return err
	}
	text(w, http.StatusOK, key)
	return nil
}

// mayControl refuses keys of services that may not act on the whole device.
func (r *request) mayControl() error {
	if r.scope.Global || r.scope.Device {
		return nil
	}
	return jsonError(http.StatusUnauthorized, "Unauthorized: this service's key does not act on the device; give the service the label %s, or set the device variable SUPERVISOR_COMPATIBLE_SCOPES", model.ControlLabel)
}

// forDevice is a handler that shows or changes more than one application.
func (s *server) forDevice(h handler) handler {
	return func(w http.ResponseWriter, r *request) error {
		if err := r.mayControl(); err != nil {
			return err
		}
		return h(w, r)
	}
}

type powerAnswer struct {
	Data  string
	Error any
}

func (s *server) reboot(w http.ResponseWriter, r *request) error {
	return s.power(w, r, func() error { return s.b.Reboot(r.Context(), r.force()) })
}

func (s *server) shutdown(w http.ResponseWriter, r *request) error {
	return s.power(w, r, func() error { return s.b.Shutdown(r.Context(), r.force()) })
}

func (s *server) power(w http.ResponseWriter, r *request, do func() error) error {
	if err := r.mayControl(); err != nil {
		return err
	}
	err := do()
	switch {
	case errdef.Is(err, errdef.Busy):
		write(w, http.StatusLocked, powerAnswer{"", err.Error()})
	case err != nil:
		write(w, http.StatusInternalServerError, powerAnswer{"", err.Error()})
	default:
		write(w, http.StatusAccepted, powerAnswer{"OK", nil})
	}
	return nil
}

type hostNetwork struct {
	Hostname string      `json:"hostname"`
	Proxy    *host.Proxy `json:"proxy,omitempty"`
}

func (s *server) hostConfig(w http.ResponseWriter, _ *request) error {
	c, err := s.b.HostConfig()
	if err != nil {
		return err
	}
	write(w, http.StatusOK, struct {
		Network hostNetwork `json:"network"`
	}{hostNetwork{c.Hostname, c.Proxy}})
	return nil
}

// defaultDNS is what dns: true means.
const defaultDNS = "8.8.8.8:53"

// isHostname wants a label of RFC 1123.
func isHostname(s string) bool {
	strange := func(c rune) bool {
		return c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
	}
	return s != "" && len(s) <= 63 && !strings.ContainsFunc(s, strange) && strings.Trim(s, "-") == s
}

func (s *server) setHostConfig(w http.ResponseWriter, r *request) error {
	if err := r.mayControl(); err != nil {
		return err
	}
	network, isObject := r.body["network"].(map[string]any)
	if !isObject {
		return textError(http.StatusBadRequest, "Could not parse host config input to a valid format: network is missing")
	}
	var change HostChange
	if v, given := network["hostname"]; given {
		name, isText := v.(string)
		if !isText || name != "" && !isHostname(name) {
			return textError(http.StatusBadRequest, "network.hostname: want letters, digits and hyphens, not %v", v)
		}
		change.Hostname = &name
	}
	if v, given := network["proxy"]; given {
		change.HasProxy = true
		wanted, isObject := v.(map[string]any)
		if !isObject {
			return textError(http.StatusBadRequest, "network.proxy: want an object; {} removes the proxy")
		}
		if len(wanted) > 0 {
			p, err := s.mergedProxy(wanted)
			if err != nil {
				return textError(http.StatusBadRequest, "network.proxy: %v", err)
			}
			change.Proxy = p
		}
	}
	err := s.b.SetHostConfig(r.Context(), change, r.force())
	switch {
	case errdef.Is(err, errdef.Busy):
		return textError(http.StatusLocked, "%v", err)
	case errdef.Is(err, errdef.Invalid):
		return textError(http.StatusBadRequest, "%v", err)
	case err != nil:
		return textError(http.StatusServiceUnavailable, "%v", err)
	}
	return ok(w)
}

// mergedProxy is what there is, with what is wanted laid over it.
func (s *server) mergedProxy(wanted map[string]any) (*host.Proxy, error) {
	now, err := s.b.HostConfig()
	if err != nil {
		return nil, err
	}
	var p host.Proxy
	if now.Proxy != nil {
		p = *now.Proxy
	}
	wanted = maps.Clone(wanted)
	switch v := wanted["dns"].(type) {
	case bool:
		wanted["dns"] = ""
		if v {
			wanted["dns"] = defaultDNS
		}
	case string, nil:
	default:
		return nil, fmt.Errorf("dns: want true, false or an address such as %s", defaultDNS)
	}
	if n, ok := model.Int(wanted["port"]); ok {
		wanted["port"] = n
	}
	data, err := json.Marshal(wanted)
	if err == nil {
		err = json.Unmarshal(data, &p)
	}
	if err != nil {
		return nil, err
	}
	return &p, p.Check()
}

func (s *server) tags(w http.ResponseWriter, r *request) error {
	tags, err := s.b.Tags(r.Context())
	if err != nil {
		return jsonError(http.StatusInternalServerError, "%v", err)
	}
	write(w, http.StatusOK, struct {
		Status string `json:"status"`
		Tags   any    `json:"tags"`
	}{success, tags})
	return nil
}

func (s *server) setTags(w http.ResponseWriter, r *request) error {
	tags := map[string]string{}
	for k, v := range r.body {
		value, isText := v.(string)
		if !isText || k == "" || strings.ContainsAny(k, " \t\r\n") {
			return jsonError(http.StatusBadRequest, "tag %q: want a key without blanks and a string", k)
		}
		tags[k] = value
	}
	if len(tags) == 0 {
		return jsonError(http.StatusBadRequest, "no tags are given")
	}
	if err := s.b.SetTags(tags); err != nil {
		return jsonError(http.StatusInternalServerError, "%v", err)
	}
	write(w, http.StatusAccepted, struct {
		Status string `json:"status"`
	}{success})
	return nil
}

func (s *server) vpn(w http.ResponseWriter, r *request) error {
	enabled, connected := s.b.VPN(r.Context())
	type vpn struct {
		Enabled   bool `json:"enabled"`
		Connected bool `json:"connected"`
	}
	write(w, http.StatusOK, struct {
		Status string `json:"status"`
		VPN    vpn    `json:"vpn"`
	}{success, vpn{enabled, connected}})
	return nil
}

// journalFormats are those of journalctl that a reader may ask for.
var journalFormats = []string{"short", "short-full", "short-iso", "short-iso-precise", "short-precise", "short-monotonic", "short-unix", "verbose", "export", "json", "json-pretty", "json-sse", "json-seq", "cat", "with-unit"}

// journalLogs sends what journalctl prints, as long as the client listens.
func (s *server) journalLogs(w http.ResponseWriter, r *request) error {
	o := host.JournalOptions{All: model.Truthy(r.body["all"]), Follow: model.Truthy(r.body["follow"])}
	o.Count, _ = model.Int(r.body["count"])
	o.Unit, _ = model.Str(r.body["unit"])
	o.Tag, _ = model.Str(r.body["containerId"])
	o.Since, _ = model.Str(r.body["since"])
	o.Until, _ = model.Str(r.body["until"])
	o.Format, _ = model.Str(r.body["format"])
	if o.Format == "" {
		o.Format = "short"
	}
	if !slices.Contains(journalFormats, o.Format) {
		return jsonError(http.StatusBadRequest, "format: want one of %s", strings.Join(journalFormats, ", "))
	}
	return s.b.Journal(r.Context(), o, flushed{w, http.NewResponseController(w)})
}

// flushed sends each piece at once.
type flushed struct {
	http.ResponseWriter
	c *http.ResponseController
}

func (f flushed) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	if err == nil {
		err = f.c.Flush()
	}
	return n, err
}

func (s *server) deviceMetrics(w http.ResponseWriter, _ *request) error {
	write(w, http.StatusOK, struct {
		Status  string         `json:"status"`
		Metrics map[string]any `json:"metrics"`
	}{success, s.b.Metrics()})
	return nil
}

// metrics answers GET /metrics in Prometheus' text form.
func (s *server) metrics(w http.ResponseWriter, r *request) error {
	st, err := s.b.Status(r.Context())
	if err != nil {
		return err
	}
	var b strings.Builder
	gauge := func(name, help string) { fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s gauge\n", name, help, name) }
	meters := s.b.Metrics()
	for _, m := range []struct{ key, name, help string }{
		{"cpu_usage", "minke_cpu_usage_percent", "Processor time in use since the last reading."},
		{"cpu_temp", "minke_cpu_temperature_celsius", "Temperature of the processor."},
		{"memory_usage", "minke_memory_used_megabytes", "Memory that cannot be given back."},
		{"memory_total", "minke_memory_megabytes", "Memory."},
		{"storage_usage", "minke_storage_used_megabytes", "Space in use on the data partition."},
		{"storage_total", "minke_storage_megabytes", "Space on the data partition."},
	} {
		if v, ok := meters[m.key]; ok {
			gauge(m.name, m.help)
			fmt.Fprintf(&b, "%s %v\n", m.name, v)
		}
	}
	gauge("minke_updating", "1 while the target state is not reached.")
	fmt.Fprintf(&b, "minke_updating %d\n", number(st.Applying))
	gauge("minke_service_running", "1 while the service's container runs.")
	for _, c := range st.Containers {
		fmt.Fprintf(&b, "minke_service_running{app=%q,service=%q} %d\n", c.App.String(), c.Service, number(c.State == "running"))
	}
	gauge("minke_service_restarts", "Restarts by its restart policy since it was started.")
	for _, c := range st.Containers {
		fmt.Fprintf(&b, "minke_service_restarts{app=%q,service=%q} %d\n", c.App.String(), c.Service, c.Restarts)
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, err = w.Write([]byte(b.String()))
	return err
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}
