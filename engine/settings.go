package engine

import (
	"context"
	"encoding/json"
	"os"
	"strconv"

	"github.com/moby/moby/api/types/events"

	"github.com/minke-os/minke/engine/registry"
	"github.com/minke-os/minke/oci"
)

// Settings are the part of a Config that may change while the engine runs.
type Settings struct {
	Debug    bool
	Labels   []string // key=value, of the engine, shown by docker info
	Mirrors  []string // registry mirrors, URLs
	Insecure []string // registries without TLS, host:port or CIDR

	// Downloads, Uploads and Tries are registry.Options'; 0 is usual.
	Downloads, Uploads, Tries int
}

// apply takes s over, or nothing of it.
func (e *Engine) apply(s Settings) error {
	r, err := registry.New(e.images, e.db, registry.Options{
		Mirrors: s.Mirrors, Insecure: s.Insecure, Downloads: s.Downloads, Uploads: s.Uploads, Tries: s.Tries, UserAgent: "minke/" + e.cfg.Version + " (linux; " + oci.Host().Architecture + ")", Logger: e.log,
	})
	if err != nil {
		return err
	}
	e.registry.Store(r)
	e.settings.Store(&s)
	return nil
}

// Reload takes new settings over; pulls that go on end with the old ones.
func (e *Engine) Reload(s Settings) error {
	if err := e.apply(s); err != nil {
		return err
	}
	host, _ := os.Hostname()
	e.events.Publish(events.DaemonEventType, events.ActionReload, e.id, map[string]string{
		"name": host, "debug": strconv.FormatBool(s.Debug), "labels": list(s.Labels), "registry-mirrors": list(s.Mirrors),
		"insecure-registries": list(s.Insecure), "live-restore": "true", "default-runtime": runtimeName,
	})
	return nil
}

// list is how Docker shows one in an event.
func list(s []string) string {
	data, _ := json.Marshal(append([]string{}, s...)) // strings always can
	return string(data)
}

// Debugs reports whether debugging is on.
func (e *Engine) Debugs() bool { return e.settings.Load().Debug }

// Alive returns when the engine has its locks free and its monitor answers, as
// a watchdog wants to know.
func (e *Engine) Alive(ctx context.Context) error {
	for _, c := range e.all() {
		c.snapshot()
	}
	_, err := e.rt.List(ctx)
	return err
}
