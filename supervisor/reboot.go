package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/minke-os/minke/internal/durable"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/supervisor/plan"
)

// What a boot must remember is in files whose first line says which boot it was.
// They go with /tmp.

// rebootFile is there when a change needs a reboot.
func (s *Supervisor) rebootFile() string { return filepath.Join(s.cfg.HostTmp, "reboot-after-apply") }

// freshFile has the services whose containers start after a reboot.
func (s *Supervisor) freshFile() string { return filepath.Join(s.cfg.HostTmp, "start-after-reboot") }

func (s *Supervisor) noteBoot(path string, lines ...string) error {
	if err := os.MkdirAll(s.cfg.HostTmp, 0o755); err != nil {
		return err
	}
	return durable.WriteFile(path, []byte(strings.Join(append([]string{s.host.BootID()}, lines...), "\n")), 0o644)
}

// notedBoot reads what was noted in this boot; ok is false if nothing was.
func (s *Supervisor) notedBoot(path string) (lines []string, ok bool, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	lines = strings.Split(string(text), "\n")
	if err != nil || lines[0] != s.host.BootID() {
		return nil, false, err
	}
	return lines[1:], true, nil
}

// created notes, before it is made, a container that starts after a reboot only.
func (s *Supervisor) created(want plan.Want, st plan.Step) error {
	for _, app := range want.Apps {
		for _, svc := range app.Services {
			if app.ID != st.App || svc.Service != st.Service || !svc.Reboots {
				continue
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.fresh[serviceKey(app.ID, svc.Service)] = true
			return s.noteBoot(s.freshFile(), slices.Sorted(maps.Keys(s.fresh))...)
		}
	}
	return nil
}

// readFresh takes up what an earlier run noted in this boot.
func (s *Supervisor) readFresh() error {
	services, _, err := s.notedBoot(s.freshFile())
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, svc := range services {
		s.fresh[svc] = true
	}
	return err
}

// onlyReboot reports whether nothing is left to be done before services that
// start after a reboot.
func (s *Supervisor) onlyReboot(steps []plan.Step) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	handing := func(st plan.Step) bool { return !st.Idle() || st.Container != "" }
	return len(s.fetching) == 0 && !slices.ContainsFunc(steps, handing) &&
		slices.ContainsFunc(steps, func(st plan.Step) bool { return st.Kind == plan.Reboot })
}

// rebootFor reboots for services that start after that.
func (s *Supervisor) rebootFor(ctx context.Context, force bool) time.Duration {
	if _, ok, err := s.notedBoot(s.rebootFile()); !ok && err == nil {
		if err := s.needReboot(); err != nil {
			s.log.Error("remember that a reboot is needed", "err", err)
			return maxRetry
		}
	}
	return s.rebootIfNeeded(ctx, force)
}

func (s *Supervisor) needReboot() error {
	s.hub.System("Reboot has been scheduled to apply changes")
	return s.noteBoot(s.rebootFile())
}

// rebootIfNeeded reboots a device that is done with all else, if a setting
// or a service needs it and the update locks of all applications allow it. It
// returns when to look again.
func (s *Supervisor) rebootIfNeeded(ctx context.Context, force bool) time.Duration {
	if _, ok, _ := s.notedBoot(s.rebootFile()); !ok {
		return never
	}
	err := s.rebootNow(ctx, force)
	if err == nil {
		return maxRetry // it is on its way
	}
	if text := err.Error(); text != s.configured.waiting {
		s.configured.waiting = text
		s.log.Warn("reboot to apply changes", "err", err)
		s.hub.System("Waiting to reboot: " + text)
	}
	if errdef.Is(err, errdef.Busy) {
		return maxLockRetry
	}
	return maxRetry
}

func (s *Supervisor) rebootNow(ctx context.Context, force bool) error {
	if s.host.Updating() {
		return errdef.Busy.Errorf("Waiting for Host OS update to finish")
	}
	release, err := s.lockAll(force)
	if err != nil {
		return err
	}
	s.hub.System("Rebooting")
	if err := s.host.Reboot(ctx); err != nil {
		release()
		return fmt.Errorf("reboot: %w", err)
	}
	return nil
}
