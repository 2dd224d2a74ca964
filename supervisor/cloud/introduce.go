package cloud

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"

	"github.com/minke-os/minke/internal/errdef"
)

// An Introduction is what a device tells a server that does not know it yet:
// settings it came with, as device variables without prefix, and its name.
type Introduction struct {
	Variables map[string]string
	Name      string // "" for the server to choose
}

// introduce makes the settings that the device came with variables at the
// server, once, but for those that somebody has set there. Nothing waits for
// it. A server that refuses is not asked again.
func (l *Link) introduce(ctx context.Context) {
	select {
	case <-l.pinned:
	case <-ctx.Done():
		return
	}
	for failures := 1; ; failures++ {
		intro, known := l.cfg.Device.Introduction()
		if known {
			return
		}
		err := l.introduceOnce(ctx, intro)
		if ctx.Err() != nil {
			return
		}
		if isFinal(statusOf(err)) {
			l.log.Warn("the server does not take the settings that the device came with", "err", err)
			err = nil
		}
		if err == nil {
			err = l.cfg.Device.Introduced()
		}
		if err == nil {
			return
		}
		wait := backOff(failures, l.cfg.Device.Settings().Interval)
		l.log.Warn("tell the settings that the device came with", "err", err, "retry", wait)
		if !l.pauseAfter(ctx, err, wait) {
			return
		}
	}
}

// isFinal reports whether a refusal will be the same another time.
func isFinal(status int) bool {
	return status >= 400 && status < 500 && status != http.StatusUnauthorized && status != http.StatusRequestTimeout && status != http.StatusTooManyRequests
}

func (l *Link) introduceOnce(ctx context.Context, intro Introduction) error {
	id := l.cfg.Device.Identity()
	_, answer, err := l.call(ctx, http.MethodGet, "/device/v3/"+id.UUID+"/state", "", nil, nil)
	if err != nil {
		return err
	}
	var state map[string]struct{ Config map[string]string }
	if err := json.Unmarshal(answer, &state); err != nil {
		return errdef.Invalid.Errorf("the server's answer about this device: %w", err)
	}
	set := state[id.UUID].Config
	for _, name := range slices.Sorted(maps.Keys(intro.Variables)) {
		if has(set, name) {
			continue
		}
		body := map[string]any{"device": id.ID, "name": "RESIN_" + name, "value": intro.Variables[name]}
		_, _, err := l.call(ctx, http.MethodPost, "/v7/device_config_variable", "", body, nil)
		if err != nil && statusOf(err) != http.StatusConflict { // somebody was faster
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if intro.Name == "" {
		return nil
	}
	_, _, err = l.call(ctx, http.MethodPatch, fmt.Sprintf("/v7/device(%d)", id.ID), "", map[string]any{"device_name": intro.Name}, nil)
	return err
}

// has reports whether a variable is among others, whatever its prefix.
func has(set map[string]string, name string) bool {
	for _, prefix := range []string{"BALENA_", "RESIN_", ""} {
		if _, ok := set[prefix+name]; ok {
			return true
		}
	}
	return false
}
