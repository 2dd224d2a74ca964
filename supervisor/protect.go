package supervisor

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/minke-os/minke/supervisor/firewall"
	"github.com/minke-os/minke/supervisor/model"
)

// protect makes the firewall what the target says. A host that cannot have one
// is told of once.
func (s *Supervisor) protect() {
	if s.cfg.Firewall == nil {
		return
	}
	problem := ""
	if err := s.makeWall(s.wallRules()); err != nil {
		problem = err.Error()
	}
	if problem != "" && problem != s.wallProblem {
		s.log.Error("firewall", "err", problem)
		s.hub.System("Firewall mode not applied due to error: " + problem)
	}
	s.wallProblem = problem
}

// wallFile has the ports for which there may be a table.
func (s *Supervisor) wallFile() string { return filepath.Join(s.cfg.HostTmp, "firewall-ports") }

// makeWall makes the table, then removes those of other ports that an earlier run
// left, for they would close all but their own port. What may be there is noted
// before it is.
func (s *Supervisor) makeWall(r firewall.Rules) error {
	port := tablePort(r)
	if port == s.wallPort {
		return s.cfg.Firewall(r)
	}
	noted, _, err := s.notedBoot(s.wallFile())
	if err != nil {
		return err
	}
	text := strconv.Itoa(int(port))
	noted = slices.DeleteFunc(noted, func(line string) bool { return line == text })
	if err := s.noteBoot(s.wallFile(), append(noted, text)...); err != nil {
		return err
	}
	if err := s.cfg.Firewall(r); err != nil {
		return err
	}
	for _, line := range noted {
		old, err := strconv.ParseUint(line, 10, 16)
		if err != nil {
			continue // it is not ours
		}
		if err := s.cfg.Firewall(firewall.Rules{Ports: []uint16{uint16(old)}, None: true}); err != nil {
			return err
		}
	}
	if len(noted) > 0 {
		if err := s.noteBoot(s.wallFile(), text); err != nil {
			return err
		}
	}
	s.wallPort = port
	return nil
}

// tablePort is the port that a table is named by.
func tablePort(r firewall.Rules) uint16 {
	if len(r.Ports) == 0 {
		return Port
	}
	return r.Ports[0]
}

// unprotect removes what only guards the API, which nobody serves any more. A
// firewall that is on stays.
func (s *Supervisor) unprotect() {
	if s.cfg.Firewall == nil {
		return
	}
	if r := s.wallRules(); !r.On {
		r.None = true
		s.cfg.Firewall(r)
		os.Remove(s.wallFile()) // one that stays does no harm
	}
}

// watchWall has the firewall made again when somebody removes it.
func (s *Supervisor) watchWall(ctx context.Context) {
	if s.cfg.WatchFirewall == nil {
		return
	}
	if err := s.cfg.WatchFirewall(ctx, s.poke); err != nil {
		s.log.Warn("a firewall that others remove comes back with the next change only", "err", err)
	}
}

// wallRules are what the firewall's mode says. Auto is on while a service uses
// the host's network. Whoever gave addresses to listen on wants the API reached
// there.
func (s *Supervisor) wallRules() firewall.Rules {
	t := s.Target()
	r := firewall.Rules{Everywhere: s.cfg.Listen != nil}
	listen := s.cfg.Listen
	if listen == nil {
		listen = []string{net.JoinHostPort("", s.port())}
	}
	for _, addr := range listen {
		_, text, _ := net.SplitHostPort(addr)
		if port, err := strconv.ParseUint(text, 10, 16); err == nil {
			r.Ports = append(r.Ports, uint16(port))
		}
	}
	switch t.Config[firewallMode] {
	case "on":
		r.On = true
	case "auto":
		want, _ := s.wanted()
		for _, app := range want.Apps {
			r.On = r.On || slices.ContainsFunc(app.Services, func(svc model.Spec) bool { return svc.Host.NetworkMode.IsHost() })
		}
	}
	return r
}
