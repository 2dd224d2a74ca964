package supervisor

import (
	"net"
	"reflect"
	"slices"
	"strconv"

	"github.com/minke-os/minke/supervisor/firewall"
	"github.com/minke-os/minke/supervisor/model"
)

// protect makes the firewall what the target says, if it may be another. A host
// that cannot have one is told of once.
func (s *Supervisor) protect() {
	if s.cfg.Firewall == nil {
		return
	}
	r := s.wallRules()
	if s.wall != nil && reflect.DeepEqual(*s.wall, r) {
		return
	}
	s.wall = &r
	if err := s.cfg.Firewall(r); err != nil {
		s.log.Error("firewall", "err", err)
		s.hub.System("Firewall mode not applied due to error: " + err.Error())
	}
}

// wallRules are what HOST_FIREWALL_MODE says: on, off, or auto, which is on
// while a service uses the host's network. Whoever gave addresses to listen on
// wants the API reached there.
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
	switch t.Config["HOST_FIREWALL_MODE"] {
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
