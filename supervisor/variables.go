package supervisor

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/minke-os/minke/supervisor/model"
)

// flags are the device variables that are booleans, and what each is while it is
// not given or is none.
var flags = map[string]bool{
	"SUPERVISOR_INSTANT_UPDATE_TRIGGER": true,
	"SUPERVISOR_LOG_CONTROL":            true,
	"SUPERVISOR_HARDWARE_METRICS":       true,
	"SUPERVISOR_CONNECTIVITY_CHECK":     true,
	"SUPERVISOR_LOCAL_MODE":             false,
	"SUPERVISOR_OVERRIDE_LOCK":          false,
	"SUPERVISOR_COMPATIBLE_SCOPES":      false,
	"SUPERVISOR_DELTA":                  false,
	"SUPERVISOR_PERSISTENT_LOGGING":     false,
	"SUPERVISOR_VPN_CONTROL":            true,
	"HOST_DISCOVERABILITY":              true,
}

// numbers are those that are whole numbers: what each is while it is not given or
// is none, and what it is at least.
var numbers = map[string]struct{ otherwise, least int }{
	pollInterval:                       {usualInterval, 1000},
	"SUPERVISOR_API_REQUEST_TIMEOUT":   {59_000, 1000},
	"SUPERVISOR_DELTA_REQUEST_TIMEOUT": {59_000, 1000},
	"SUPERVISOR_DELTA_APPLY_TIMEOUT":   {0, 0},
	"SUPERVISOR_DELTA_RETRY_COUNT":     {30, 0},
	"SUPERVISOR_DELTA_RETRY_INTERVAL":  {10_000, 0},
	"SUPERVISOR_ROLLBACK_TIMEOUT":      {0, 0},
}

// pollInterval is the time between polls, in milliseconds. Without it config.json
// decides.
const (
	pollInterval  = "SUPERVISOR_POLL_INTERVAL"
	usualInterval = 900_000
)

// firewallMode is on, auto or off, which it is otherwise.
const firewallMode = "HOST_FIREWALL_MODE"

func isFirewallMode(v string) bool { return slices.Contains([]string{"on", "auto", "off"}, v) }

// flag reads one of flags.
func flag(config map[string]string, name string) bool {
	otherwise, ok := flags[name]
	if !ok {
		panic(name + " is not in the list of flags")
	}
	if v, ok := model.Bool(config[name]); ok {
		return v
	}
	return otherwise
}

// numeric reads one of numbers. An otherwise that is not 0 is instead of the list's.
func numeric(config map[string]string, name string, otherwise int) int {
	n, ok := numbers[name]
	if !ok {
		panic(name + " is not in the list of numbers")
	}
	v, ok := model.Int(config[name])
	if !ok {
		v = cmp.Or(otherwise, n.otherwise)
	}
	return max(v, n.least)
}

// mistakes are the variables whose values are not what they are taken for, by
// name, with what is used instead. interval is that of config.json.
func mistakes(config map[string]string, interval int) map[string]string {
	out := map[string]string{}
	for name, value := range config {
		if value == "" {
			continue // as good as not given
		}
		if _, ok := flags[name]; ok {
			if _, ok := model.Bool(value); !ok {
				out[name] = strconv.FormatBool(flag(config, name))
			}
		}
		if n, ok := numbers[name]; ok {
			otherwise := 0
			if name == pollInterval {
				otherwise = interval
			}
			if v, ok := model.Int(value); !ok || v < n.least {
				out[name] = strconv.Itoa(numeric(config, name, otherwise))
			}
		}
		if name == firewallMode && !isFirewallMode(value) {
			out[name] = "off"
		}
	}
	return out
}

// sayMistakes tells people of wrong variables, of each value once.
func (s *Supervisor) sayMistakes(config map[string]string) {
	s.mu.Lock()
	said, interval := s.wrong, intOf(s.boot.PollInterval)
	s.mu.Unlock()
	wrong := map[string]string{}
	used := mistakes(config, interval)
	for _, name := range slices.Sorted(maps.Keys(used)) {
		wrong[name] = config[name]
		if old, ok := said[name]; ok && old == config[name] {
			continue
		}
		s.log.Warn("device variable is not valid", "variable", name, "value", config[name], "used", used[name])
		s.hub.System(fmt.Sprintf("Warning: Ignoring invalid device configuration value for %s: %q; %s is used", name, config[name], used[name]))
	}
	s.mu.Lock()
	s.wrong = wrong
	s.mu.Unlock()
}
