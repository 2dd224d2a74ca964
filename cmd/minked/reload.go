package main

import (
	"context"
	"log/slog"
	"os"
	"reflect"
	"strings"

	"github.com/minke-os/minke/engine"
)

// settings are what the engine takes while it runs.
func (c *config) settings() engine.Settings {
	return engine.Settings{Debug: c.Debug, Labels: c.Labels, Mirrors: c.Mirrors, Insecure: c.Insecure, Downloads: c.Downloads, Uploads: c.Uploads, Tries: c.Tries}
}

// reloadable are the names of what a SIGHUP changes; the rest needs a restart.
var reloadable = map[string]bool{
	"debug": true, "log-level": true, "labels": true, "registry-mirrors": true, "insecure-registries": true, "live-restore": true,
	"max-concurrent-downloads": true, "max-concurrent-uploads": true, "max-download-attempts": true,
}

// A reloader reads the configuration again when it is told to.
type reloader struct {
	args    []string
	manager service
	level   *slog.LevelVar
	engine  *engine.Engine // nil if it is another's
	log     *slog.Logger
}

func (r reloader) run(ctx context.Context, cfg *config, hangup <-chan os.Signal) error {
	for {
		select {
		case <-hangup:
		case <-ctx.Done():
			return nil
		}
		r.manager.reloading()
		if next, err := r.reload(cfg); err != nil {
			r.log.Error("configuration is not reloaded; the old one holds", "err", err)
		} else {
			cfg = next
		}
		r.manager.notify("READY=1")
	}
}

func (r reloader) reload(old *config) (*config, error) {
	cfg, err := parse(r.args)
	if err != nil {
		return nil, err
	}
	if r.engine != nil {
		if err := r.engine.Reload(cfg.settings()); err != nil {
			return nil, err
		}
	}
	r.level.Set(cfg.level())
	if rest := needRestart(old, cfg); len(rest) > 0 {
		r.log.Warn("some of the new configuration takes a restart", "directives", strings.Join(rest, ", "))
	}
	r.log.Info("configuration is reloaded")
	return cfg, nil
}

// needRestart names what has changed and is not reloadable.
func needRestart(old, now *config) (out []string) {
	a, b := reflect.ValueOf(*old), reflect.ValueOf(*now)
	for _, f := range reflect.VisibleFields(a.Type()) {
		name := f.Tag.Get("json")
		if name == "" || reloadable[name] || reflect.DeepEqual(a.FieldByIndex(f.Index).Interface(), b.FieldByIndex(f.Index).Interface()) {
			continue
		}
		out = append(out, name)
	}
	return out
}
