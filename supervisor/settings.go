package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/supervisor/bootconfig"
	"github.com/minke-os/minke/supervisor/model"
)

// A hostVars is the target's variables as far as they set something of the
// host. A variable that nobody ever set leaves the host as it is; one that was
// set and is gone gives it the default back.
type hostVars struct {
	now  map[string]string
	gone []string // set by an earlier target
}

// flag is a variable's value; ok is false if it leaves the host as it is.
func (v hostVars) flag(name string) (value, ok bool) {
	_, given := v.now[name]
	return flag(v.now, name), given || slices.Contains(v.gone, name)
}

// below are the variables with a prefix, without it.
func (v hostVars) below(prefix string) (now map[string]string, gone []string) {
	now = map[string]string{}
	for k, value := range v.now {
		if name, ok := strings.CutPrefix(k, prefix); ok {
			now[name] = value
		}
	}
	for _, k := range v.gone {
		if name, ok := strings.CutPrefix(k, prefix); ok {
			gone = append(gone, name)
		}
	}
	return now, gone
}

// A configuring is what the loop knows of the host's settings.
type configuring struct {
	generation int // of the target whose variables are set
	failures   int
	until      time.Time // when it is tried again after them, or for a change that is not due yet; zero for never
	waiting    string    // why the host does not reboot
}

// hostLimit bounds how long a host may keep the loop waiting.
const hostLimit = 5 * time.Second

// configure makes the host what the target's variables say, and reports when
// to look again. What fails is tried again later; applications do not wait for
// it.
func (s *Supervisor) configure(ctx context.Context) time.Duration {
	s.mu.Lock()
	config, generation := s.target.Config, s.want.Generation
	s.mu.Unlock()
	c := &s.configured
	if generation == c.generation && c.until.IsZero() || generation == 0 {
		return never
	}
	if wait := time.Until(c.until); generation == c.generation && wait > 0 {
		return wait
	}
	if generation != c.generation {
		c.failures = 0
	}
	c.generation, c.until = generation, time.Time{}
	ctx, cancel := context.WithTimeout(ctx, hostLimit)
	defer cancel()
	err := s.setHost(ctx, config)
	if err == nil {
		c.failures = 0
		s.setHostProblem("")
		if !c.until.IsZero() {
			return time.Until(c.until)
		}
		return never
	}
	c.failures++
	delay := min(time.Second<<min(c.failures, 12), maxRetry)
	c.until = time.Now().Add(delay)
	if s.setHostProblem(err.Error()) {
		s.log.Error("set the host up", "err", err, "retry", delay)
		s.hub.System("Error applying configuration change: " + err.Error())
	}
	return delay
}

// setHostProblem keeps why the host is not what the target says, and reports
// whether that is news.
func (s *Supervisor) setHostProblem(text string) (news bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	news = s.hostProblem != text
	s.hostProblem = text
	return news
}

func (s *Supervisor) setHost(ctx context.Context, config map[string]string) error {
	before := s.store.HostVariables()
	vars := hostVars{now: config}
	for _, name := range before {
		if _, still := config[name]; !still {
			vars.gone = append(vars.gone, name)
		}
	}
	ours := slices.Collect(maps.Keys(config))
	ours = slices.DeleteFunc(ours, func(name string) bool { return !setsHost(name) })
	// They are ours from here on, done or not.
	if err := s.store.SetHostVariables(slices.Concat(before, ours)); err != nil {
		return err
	}
	err := errors.Join(s.setConfigJSON(vars), s.setUnits(ctx, vars), s.setBoot(vars))
	if err != nil || !s.configured.until.IsZero() {
		return err
	}
	return s.store.SetHostVariables(ours)
}

// units are services of the host that a variable switches.
var units = map[string][]string{
	"SUPERVISOR_VPN_CONTROL": {vpnUnit},
	"HOST_DISCOVERABILITY":   {"avahi-daemon.socket", "avahi-daemon.service"},
}

func setsHost(variable string) bool {
	return units[variable] != nil || slices.Contains([]string{"SUPERVISOR_PERSISTENT_LOGGING", pollInterval}, variable) || setsBoot(variable)
}

func setsBoot(variable string) bool {
	return slices.ContainsFunc([]string{"HOST_CONFIG_", "HOST_EXTLINUX_", "HOST_ODMDATA_", "HOST_CONFIGFS_", "HOST_SPLASH_"}, func(p string) bool { return strings.HasPrefix(variable, p) })
}

// setConfigJSON keeps in config.json what the host reads there.
func (s *Supervisor) setConfigJSON(v hostVars) error {
	if s.cfg.BootDir == "" {
		return nil
	}
	change := map[string]any{}
	had := intOf(s.bootNow().PollInterval)
	if _, ok := model.Int(v.now[pollInterval]); ok && numeric(v.now, pollInterval, 0) != had {
		change["appUpdatePollInterval"] = numeric(v.now, pollInterval, 0)
	}
	if slices.Contains(v.gone, pollInterval) && had != 0 {
		change["appUpdatePollInterval"] = nil
	}
	on, ok := v.flag("SUPERVISOR_PERSISTENT_LOGGING")
	reboot := ok && on != model.Truthy(s.bootNow().PersistentLogging)
	if reboot {
		change["persistentLogging"] = on
	}
	if system, power, changed := s.cooling(v); changed {
		change["os"] = system
		reboot = reboot || power
	}
	if len(change) == 0 {
		return nil
	}
	if err := s.changeBoot(change); err != nil {
		return err
	}
	s.changed("configuration change", change)
	if reboot {
		return s.needReboot()
	}
	return nil
}

// cooling is what config.json has under os, with the power mode and the fan
// profile that Jetson Orins take from there. Only the first needs a reboot.
func (s *Supervisor) cooling(v hostVars) (system map[string]any, power, changed bool) {
	b := s.bootNow()
	system = maps.Clone(b.System)
	if system == nil {
		system = map[string]any{}
	}
	if !strings.Contains(b.DeviceType, "-orin-") {
		return system, false, false
	}
	set := func(variable, part, key string) bool {
		text, given := v.now[variable]
		old, _ := system[part].(map[string]any)
		had, _ := old[key].(string)
		if had == text || !given && !slices.Contains(v.gone, variable) {
			return false
		}
		fresh := maps.Clone(old)
		if fresh == nil {
			fresh = map[string]any{}
		}
		delete(fresh, key)
		if given {
			fresh[key] = text
		}
		system[part] = fresh
		return true
	}
	power = set("HOST_CONFIG_power_mode", "power", "mode")
	fan := set("HOST_CONFIG_fan_profile", "fan", "profile")
	return system, power, power || fan
}

// vpnPause lies between two changes of the VPN: a device that is reached by it
// alone, and a server that says now this and now that, must not lose each other often.
const (
	vpnUnit  = "openvpn.service"
	vpnPause = time.Hour
)

// vpnFile has how long the host had been up when the VPN was switched last. A
// reboot switches it as the host does.
func (s *Supervisor) vpnFile() string { return filepath.Join(s.cfg.HostTmp, "vpn-switched") }

// vpnTooSoon puts a change of the VPN off until an hour after the one before.
func (s *Supervisor) vpnTooSoon() (bool, error) {
	lines, ok, err := s.notedBoot(s.vpnFile())
	if !ok || err != nil {
		return false, err
	}
	at, err := time.ParseDuration(strings.Join(lines, ""))
	wait := at + vpnPause - s.host.Uptime()
	if err != nil || wait <= 0 {
		return false, nil
	}
	s.configured.until = time.Now().Add(wait)
	s.hub.System(fmt.Sprintf("The VPN is switched once an hour at most; it will be in %v", wait.Round(time.Minute)))
	return true, nil
}

// switchUnit starts or stops a unit of the host, and reports whether it did.
func (s *Supervisor) switchUnit(ctx context.Context, unit string, on bool) (bool, error) {
	active, err := s.host.UnitActive(ctx, unit)
	if err != nil || active == on {
		return false, err
	}
	if unit != vpnUnit {
		return true, s.host.SetUnit(ctx, unit, on)
	}
	if soon, err := s.vpnTooSoon(); soon || err != nil {
		return false, err
	}
	if err := s.host.SetUnit(ctx, unit, on); err != nil {
		return false, err
	}
	return true, s.noteBoot(s.vpnFile(), s.host.Uptime().String())
}

// setUnits starts and stops services of the host.
func (s *Supervisor) setUnits(ctx context.Context, v hostVars) error {
	for _, name := range slices.Sorted(maps.Keys(units)) {
		on, ok := v.flag(name)
		if !ok {
			continue
		}
		for _, unit := range units[name] {
			switched, err := s.switchUnit(ctx, unit, on)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", name, unit, err)
			}
			if switched {
				s.changed("configuration change", map[string]any{name: on})
			}
		}
	}
	return nil
}

func (s *Supervisor) bootFacts() bootconfig.Facts {
	b := s.bootNow()
	return bootconfig.Facts{Dir: s.cfg.BootDir, DeviceType: b.DeviceType, MetaBalena: b.os["META_BALENA_VERSION"], Root: s.cfg.HostRoot}
}

func (s *Supervisor) backends() []bootconfig.Backend { return bootconfig.Backends(s.bootFacts()) }

// loadTables gives the kernel the ACPI tables that this host is to have. It forgets
// them with each reboot.
func (s *Supervisor) loadTables(ctx context.Context) {
	tables, err := bootconfig.Tables(s.bootFacts())
	for _, file := range tables {
		err = errors.Join(err, s.host.LoadTable(ctx, file))
	}
	if err != nil {
		s.log.Error("load ACPI tables", "err", err)
		s.hub.System("Unable to initialise ConfigFS: " + err.Error())
	}
}

// setBoot changes what boots the host.
func (s *Supervisor) setBoot(v hostVars) error {
	var all error
	if s.cfg.BootDir == "" {
		for _, name := range slices.Sorted(maps.Keys(v.now)) {
			if setsBoot(name) {
				return errdef.Unsupported.Errorf("%s: this device has no boot partition; start minked with --boot-dir", name)
			}
		}
	}
	for _, b := range s.backends() {
		want, gone := v.below(b.Prefix)
		if len(want)+len(gone) == 0 {
			continue
		}
		reboot, err := b.Set(want, gone)
		if err == nil && reboot {
			s.changed("boot config", want)
			err = s.needReboot()
		}
		all = errors.Join(all, err)
	}
	return all
}

// changed tells people of a change. Pictures are left out.
func (s *Supervisor) changed(what string, values any) {
	text, err := json.Marshal(values)
	if err != nil || len(text) > 1000 {
		text = []byte("…")
	}
	s.log.Info("changed", "what", what, "values", string(text))
	s.hub.System(fmt.Sprintf("Applied %s: %s", what, text))
}
