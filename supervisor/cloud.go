package supervisor

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/minke-os/minke/supervisor/api"
	"github.com/minke-os/minke/supervisor/appsjson"
	"github.com/minke-os/minke/supervisor/cloud"
	"github.com/minke-os/minke/supervisor/logs"
	"github.com/minke-os/minke/supervisor/model"
)

// openLink prepares the link of a device that a fleet server manages.
func (s *Supervisor) openLink() error {
	if s.boot.APIEndpoint == "" {
		return nil
	}
	missing := map[string]any{}
	if s.boot.UUID == "" {
		missing["uuid"] = s.store.UUID()
	}
	if s.boot.DeviceAPIKey == "" {
		missing["deviceApiKey"] = randomKey()
	}
	if len(missing) > 0 {
		if err := s.changeBoot(missing); err != nil {
			return fmt.Errorf("keep the device's identity: %w", err)
		}
	}
	s.link = cloud.New(cloud.Config{
		Device: linked{s}, Transport: s.cfg.Transport, Logger: s.log, System: s.hub.System, Supervisor: s.cfg.Version,
		UserAgent: strings.TrimSpace(fmt.Sprintf("Supervisor/%s (Linux; %s; %s)", s.cfg.Version, s.boot.os["PRETTY_NAME"], s.variant())),
		OSVersion: s.boot.os["PRETTY_NAME"], OSVariant: s.variant(),
		MAC: func() string { return strings.Join(hardwareAddresses(), " ") },
	})
	return nil
}

func randomKey() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// variant is the operating system's: for development, or production.
func (s *Supervisor) variant() string {
	if v := s.boot.os["VARIANT_ID"]; v != "" {
		return v
	}
	if s.boot.Development {
		return "dev"
	}
	return "prod"
}

// linked is the supervisor as its link sees it.
type linked struct{ *Supervisor }

// Identity implements cloud.Device.
func (l linked) Identity() cloud.Identity {
	b := l.bootNow()
	fleet, _ := model.Int(b.Application)
	return cloud.Identity{
		Endpoint: b.APIEndpoint, LogsEndpoint: b.LogsEndpoint, DeltaEndpoint: b.deltaEndpoint(),
		UUID: l.store.UUID(), Key: b.DeviceAPIKey, Provisioning: b.APIKey,
		Fleet: fleet, DeviceType: b.DeviceType, ID: b.DeviceID,
		Registered: b.DeviceID != 0 && b.RegisteredAt != 0 && b.APIKey == "",
	}
}

// Registered implements cloud.Device.
func (l linked) Registered(id int) error {
	return l.changeBoot(map[string]any{"deviceId": id, "registered_at": time.Now().UnixMilli(), "apiKey": nil})
}

// Reborn implements cloud.Device.
func (l linked) Reborn() error {
	uuid := randomKey()
	if err := l.changeBoot(map[string]any{"uuid": uuid, "deviceApiKey": randomKey()}); err != nil {
		return err
	}
	return l.store.SetUUID(uuid)
}

// Pin implements cloud.Device.
func (l linked) Pin() (fleet int, commit string) {
	if p := l.store.Pin(); p != nil {
		return p.Fleet, p.Commit
	}
	return 0, ""
}

// Pinned implements cloud.Device.
func (l linked) Pinned() error { return l.store.SetPin(nil) }

// Introduction implements cloud.Device.
func (l linked) Introduction() (cloud.Introduction, bool) {
	b := l.bootNow()
	if l.store.Server() == b.APIEndpoint {
		return cloud.Introduction{}, true
	}
	out := cloud.Introduction{Variables: map[string]string{}, Name: b.InitialName}
	if n := intOf(b.PollInterval); n > 0 && n != usualInterval {
		out.Variables[pollInterval] = strconv.Itoa(n)
	}
	if model.Truthy(b.PersistentLogging) {
		out.Variables["SUPERVISOR_PERSISTENT_LOGGING"] = "true"
	}
	for _, place := range l.backends() {
		settings, err := place.Current()
		if err != nil {
			l.log.Warn("read how the host boots", "err", err)
		}
		for k, v := range settings {
			if model.IsVariable(k) {
				out.Variables[place.Prefix+k] = v
			}
		}
	}
	return out, false
}

// Introduced implements cloud.Device.
func (l linked) Introduced() error { return l.store.SetServer(l.bootNow().APIEndpoint) }

// Settings implements cloud.Device.
func (l linked) Settings() cloud.Settings { return l.settings() }

// settings are what the device's variables say of the link.
func (s *Supervisor) settings() cloud.Settings {
	s.mu.Lock()
	config, b := s.target.Config, s.boot
	s.mu.Unlock()
	return cloud.Settings{
		Interval: time.Duration(numeric(config, pollInterval, intOf(b.PollInterval))) * time.Millisecond,
		Timeout:  time.Duration(numeric(config, "SUPERVISOR_API_REQUEST_TIMEOUT", 0)) * time.Millisecond,
		Instant:  flag(config, "SUPERVISOR_INSTANT_UPDATE_TRIGGER"),
		Logs:     flag(config, "SUPERVISOR_LOG_CONTROL") && !s.localMode(),
	}
}

func intOf(v any) int {
	n, _ := model.Int(v)
	return n
}

// Tags implements cloud.Device.
func (l linked) Tags() map[string]string { return l.store.Tags() }

// Tagged implements cloud.Device.
func (l linked) Tagged(tags map[string]string) error { return l.store.DropTags(tags) }

// Logs implements cloud.Device.
func (l linked) Logs(ctx context.Context, since time.Time, emit func(logs.Message) error) error {
	return l.hub.Stream(ctx, logs.Options{Follow: true, Tail: -1, Since: since}, emit)
}

// reportLimit bounds how long the engine may take to say what there is.
const reportLimit = 30 * time.Second

// Report implements cloud.Device.
func (l linked) Report() map[string]any {
	d := l.Device()
	out := map[string]any{
		"api_port": intOf(d.Port), "api_secret": l.store.GlobalKey(), "os_version": d.OSVersion, "os_variant": l.variant(),
		"supervisor_version": d.Version, "provisioning_progress": nil, "provisioning_state": "", "status": "Idle", "logs_channel": nil,
		"ip_address": strings.Join(d.IPs, " "), "mac_address": strings.Join(d.MACs, " "),
	}
	if flag(l.Target().Config, "SUPERVISOR_HARDWARE_METRICS") {
		maps.Copy(out, l.host.Metrics())
	}
	if l.localMode() {
		return out
	}
	ctx, cancel := context.WithTimeout(context.Background(), reportLimit)
	defer cancel()
	if apps, err := l.appsReport(ctx); err == nil {
		out["apps"] = apps
	}
	return out
}

// appsReport is what the server shows of applications: the release that settled
// last, what is on its way, and what runs until then.
func (s *Supervisor) appsReport(ctx context.Context) (map[string]any, error) {
	st, err := s.Status(ctx)
	if err != nil {
		return nil, err
	}
	commits := map[model.AppID]string{}
	for _, c := range st.Commits {
		commits[c.App] = c.Commit
	}
	out := map[string]any{}
	target := s.Target()
	for _, app := range target.Apps {
		refused, isRefused := target.Refused[app.UUID]
		if app.Commit == "" && !isRefused {
			continue
		}
		if appsjson.Provisional(app.UUID, int(app.ID)) {
			continue // the server knows it by another name
		}
		services, states := map[string]any{}, []string{}
		for _, svc := range app.Services {
			x := st.Service(app, svc)
			entry := map[string]any{"image": svc.Image, "status": x.Status}
			if x.Progress != nil {
				entry["download_progress"] = *x.Progress
			}
			services[svc.Name] = entry
			states = append(states, x.Status)
		}
		status := st.UpdateStatus(states)
		releases := s.outgoing(ctx, st, app)
		if app.Commit != "" {
			releases[app.Commit] = map[string]any{"update_status": status, "services": services}
		}
		if isRefused {
			releases[refused.Commit] = map[string]any{"update_status": "rejected", "services": map[string]any{}}
		}
		if bad, ok := s.rejectedCommit(app.UUID); ok && bad != app.Commit {
			releases[bad] = map[string]any{"update_status": "rejected", "services": map[string]any{}}
		}
		entry := map[string]any{"releases": releases}
		if c := commits[app.ID]; c != "" {
			entry["release_uuid"] = c
		}
		out[app.UUID] = entry
	}
	return out, nil
}

// outgoing are the releases of which containers run that another one is to
// replace, by commit.
func (s *Supervisor) outgoing(ctx context.Context, st api.Status, app model.App) map[string]any {
	services := map[string]map[string]any{}
	for _, c := range st.Containers {
		if c.App != app.ID || c.Commit == app.Commit || c.Commit == "" {
			continue
		}
		if services[c.Commit] == nil {
			services[c.Commit] = map[string]any{}
		}
		next, _ := app.Service(c.Service)
		services[c.Commit][c.Service] = map[string]any{"image": s.imageName(ctx, c.ImageID, next.Image), "status": c.Status}
	}
	out := map[string]any{}
	for commit, list := range services {
		out[commit] = map[string]any{"update_status": "done", "services": list}
	}
	return out
}

// imageName is how a release named an image: by a reference that we pulled, and
// that is not the next release's if there are several, else as the engine does.
func (s *Supervisor) imageName(ctx context.Context, id, next string) string {
	img, err := s.cfg.Engine.ImageInspect(ctx, id)
	if err != nil { // it is gone, or will be named in the next report
		return id
	}
	names := slices.Concat(img.RepoDigests, img.RepoTags)
	pulled := slices.DeleteFunc(s.store.Images(), func(ref string) bool { return !slices.Contains(names, s.store.EngineName(ref)) })
	if i := slices.IndexFunc(pulled, func(ref string) bool { return ref != next }); i >= 0 {
		return pulled[i]
	}
	return append(slices.Concat(pulled, names), id)[0]
}

// rejectedCommit is the release of an application that was undone, if one was.
func (s *Supervisor) rejectedCommit(uuid string) (commit string, ok bool) {
	if s.undone() == "" {
		return "", false
	}
	t, err := model.ParseV3(s.newest(), s.store.UUID())
	if err != nil {
		return "", false
	}
	for _, app := range t.Apps {
		if app.UUID == uuid {
			return app.Commit, app.Commit != ""
		}
	}
	return "", false
}
