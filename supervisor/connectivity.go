package supervisor

import (
	"context"
	"net"
	"net/url"
	"time"
)

// connectInterval is the time between two looks at the server, and the most
// that one may take.
const connectInterval = 10 * time.Second

// watchConnection sees whether the fleet server takes connections, and shows a
// person beside the device that it does not. A VPN that is connected says
// enough; SUPERVISOR_CONNECTIVITY_CHECK switches it off.
func (s *Supervisor) watchConnection(ctx context.Context) {
	stop := func() {} // the LED
	defer func() { stop() }()
	ticker := time.NewTicker(connectInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		err := s.connect(ctx)
		if ctx.Err() != nil || !s.setOffline(err != nil) {
			continue
		}
		stop()
		stop = func() {}
		if err == nil {
			s.log.Info("the fleet server is reached again")
			continue
		}
		s.log.Warn("Waiting for connectivity…", "err", err)
		s.hub.System("Waiting for connectivity…")
		stop = s.host.Signal()
	}
}

// connect makes a connection to the server, if it is to be tried at all.
func (s *Supervisor) connect(ctx context.Context) error {
	if !flag(s.Target().Config, "SUPERVISOR_CONNECTIVITY_CHECK") || s.host.VPNConnected() {
		return nil
	}
	u, err := url.Parse(s.bootNow().APIEndpoint)
	if err != nil {
		return err
	}
	port := u.Port()
	if port == "" {
		port = u.Scheme
	}
	c, err := (&net.Dialer{Timeout: connectInterval}).DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return err
	}
	return c.Close()
}

// setOffline reports whether that is news.
func (s *Supervisor) setOffline(off bool) (news bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	news = s.offline != off
	s.offline = off
	return news
}
