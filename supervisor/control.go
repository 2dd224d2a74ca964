package supervisor

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/supervisor/api"
	"github.com/minke-os/minke/supervisor/cloud"
	"github.com/minke-os/minke/supervisor/host"
	"github.com/minke-os/minke/supervisor/model"
)

// Blink shows which device this is.
func (s *Supervisor) Blink() { s.host.Blink(context.Background()) }

// NewKey replaces an API key at once. The container of a service whose key it
// was is made anew, because its environment has it.
func (s *Supervisor) NewKey(key string) (string, error) {
	fresh, global, err := s.store.NewKey(key)
	if err != nil {
		return "", err
	}
	if global {
		s.stirred()
		return fresh, nil
	}
	s.mu.Lock()
	target, body := s.target, s.body
	s.mu.Unlock()
	if err := s.adopt(target, body, false); err != nil {
		return "", err
	}
	s.poke()
	return fresh, nil
}

// powerDelay lets the answer reach the client before the network goes.
const powerDelay = time.Second

// Reboot reboots the device when all applications' update locks allow it, or by
// force.
func (s *Supervisor) Reboot(ctx context.Context, force bool) error {
	return s.power(ctx, force, "Rebooting", s.host.Reboot)
}

// Shutdown switches it off, likewise.
func (s *Supervisor) Shutdown(ctx context.Context, force bool) error {
	return s.power(ctx, force, "Shutting down", s.host.PowerOff)
}

func (s *Supervisor) power(ctx context.Context, force bool, what string, do func(context.Context) error) error {
	if s.host.Updating() && !force { // a lock override is not enough
		return errdef.Busy.Errorf("Waiting for Host OS update to finish")
	}
	return s.job(ctx, 0, func(context.Context) error {
		release, err := s.lockAll(force)
		if err != nil {
			return err
		}
		s.hub.System(what)
		time.AfterFunc(powerDelay, func() {
			// The request is over by then.
			ctx, cancel := context.WithTimeout(context.Background(), reportLimit)
			defer cancel()
			if err := do(ctx); err != nil {
				s.log.Error(what, "err", err)
				s.hub.System("Failed: " + what + ": " + err.Error())
				release()
			}
		})
		return nil
	})
}

// lockAll takes the update locks of all applications, or none.
func (s *Supervisor) lockAll(force bool) (release func(), err error) {
	want, _ := s.wanted()
	var taken []model.AppID
	release = func() {
		for _, id := range taken {
			if err := s.releaseLock(id); err != nil {
				s.log.Warn("release update lock", "app", id, "err", err)
			}
		}
	}
	for _, app := range want.Apps {
		if err := s.takeLock(want, app.ID, force); err != nil {
			release()
			return nil, err
		}
		taken = append(taken, app.ID)
	}
	return release, nil
}

// HostConfig is the device's name and proxy.
func (s *Supervisor) HostConfig() (api.HostConfig, error) {
	c := api.HostConfig{Hostname: s.device(s.Target()).Hostname}
	p, ok, err := s.host.Proxy()
	if ok {
		c.Proxy = &p
	}
	return c, err
}

// proxyUnits are restarted when the proxy changes; a host has some of them. Those
// that belong to proxyTarget are restarted by the host itself, which watches the
// file.
var proxyUnits = []string{"balena-proxy-config.service", "resin-proxy-config.service", "redsocks.service"}

const proxyTarget = "redsocks-conf.target"

// SetHostConfig changes them, with the update locks of all applications, for
// connections break.
func (s *Supervisor) SetHostConfig(ctx context.Context, c api.HostChange, force bool) error {
	return s.job(ctx, 0, func(ctx context.Context) error {
		release, err := s.lockAll(force)
		if err != nil {
			return err
		}
		defer release()
		if c.Hostname != nil {
			name := *c.Hostname
			if name == "" {
				name = s.store.UUID()[:7]
			}
			if err := s.changeBoot(map[string]any{"hostname": name}); err != nil {
				return err
			}
		}
		if !c.HasProxy {
			return nil
		}
		if err := s.host.SetProxy(c.Proxy); err != nil {
			return err
		}
		for _, u := range proxyUnits {
			part, err := s.host.UnitPartOf(ctx, u, proxyTarget)
			if err == nil && !part {
				err = s.host.RestartUnit(ctx, u)
			}
			if err != nil {
				s.log.Warn("restart for a changed proxy", "unit", u, "err", err)
			}
		}
		return nil
	})
}

// VPN reports whether the VPN is switched on, and connected.
func (s *Supervisor) VPN(ctx context.Context) (enabled, connected bool) { return s.host.VPN(ctx) }

var errUnmanaged = errors.New("this device is not managed by a fleet server")

// Tags asks the fleet server for the device's tags.
func (s *Supervisor) Tags(ctx context.Context) ([]cloud.Tag, error) {
	if s.link == nil {
		return nil, errUnmanaged
	}
	return s.link.FetchTags(ctx)
}

// SetTags has the server told of tags, when it can be reached.
func (s *Supervisor) SetTags(tags map[string]string) error {
	if s.link == nil {
		return errUnmanaged
	}
	if err := s.store.AddTags(tags); err != nil {
		return err
	}
	s.link.TagsChanged()
	return nil
}

// Journal writes the host's log.
func (s *Supervisor) Journal(ctx context.Context, o host.JournalOptions, w io.Writer) error {
	return s.host.Journal(ctx, o, w)
}

// Metrics are the host's meters.
func (s *Supervisor) Metrics() map[string]any { return s.host.Metrics() }

// stirred tells the fleet server's link that the report may differ.
func (s *Supervisor) stirred() {
	if s.link != nil {
		s.link.Stirred()
	}
}
