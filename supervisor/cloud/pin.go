package cloud

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/minke-os/minke/internal/errdef"
)

// pin tells the server which release the device came with and stays in,
// however long that takes: asked for a target before, it would give its newest.
// It returns false if ctx ends first. A release that the server does not have,
// or has no longer, cannot be stayed in; then the device follows its fleet.
func (l *Link) pin(ctx context.Context) bool {
	for failures := 1; ; failures++ {
		fleet, commit := l.cfg.Device.Pin()
		if commit == "" {
			return true
		}
		err := l.pinOnce(ctx, fleet, commit)
		switch {
		case ctx.Err() != nil:
			return false
		case err == nil:
			l.cfg.System(fmt.Sprintf("This device stays in release %s, which it came with", commit))
			return true
		case errdef.Is(err, errdef.NotFound):
			l.log.Warn("stay in the release that came with the medium", "err", err)
			l.cfg.System(fmt.Sprintf("This device does not stay in release %s, which it came with, but follows its fleet: %v", commit, err))
			if err := l.cfg.Device.Pinned(); err == nil {
				return true
			}
		}
		wait := backOff(failures, l.cfg.Device.Settings().Interval)
		l.log.Warn("stay in the release that came with the medium", "err", err, "retry", wait)
		if failures == 1 {
			l.cfg.System(fmt.Sprintf("The server cannot be told yet that this device stays in release %s: %v", commit, err))
		}
		if !pause(ctx, wait, l.asked) {
			return false
		}
	}
}

func (l *Link) pinOnce(ctx context.Context, fleet int, commit string) error {
	filter := fmt.Sprintf("(belongs_to__application eq %d) and (commit eq '%s') and (status eq 'success')", fleet, strings.ReplaceAll(commit, "'", "''"))
	_, answer, err := l.call(ctx, http.MethodGet, "/v7/release?$select=id&$filter="+url.PathEscape(filter), "", nil, nil)
	if err != nil {
		return err
	}
	var got struct{ D []struct{ ID int } }
	if err := json.Unmarshal(answer, &got); err != nil {
		return errdef.Invalid.Errorf("look for the release: %w", err)
	}
	if len(got.D) == 0 {
		return errdef.NotFound.Errorf("the server has no such release of application %d", fleet)
	}
	path := fmt.Sprintf("/v7/device(%d)", l.cfg.Device.Identity().ID)
	if _, _, err := l.call(ctx, http.MethodPatch, path, "", map[string]any{"is_pinned_on__release": got.D[0].ID}, nil); err != nil {
		return err
	}
	return l.cfg.Device.Pinned()
}
