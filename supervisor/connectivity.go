package supervisor

import (
	"context"
	"errors"
	"net"
	"net/url"
	"time"

	"golang.org/x/sys/unix"
)

// connectInterval is the time between two looks at the server, and the most
// that one may take.
const connectInterval = 10 * time.Second

// watchConnection sees whether the fleet server takes connections, and shows a
// person beside the device that it does not. A VPN that is connected says
// enough; SUPERVISOR_CONNECTIVITY_CHECK switches it off. When the network of this
// host is back, nothing waits for the end of its pause after failures.
func (s *Supervisor) watchConnection(ctx context.Context) {
	stop := func() {} // the LED
	defer func() { stop() }()
	ticker := time.NewTicker(connectInterval)
	defer ticker.Stop()
	unplugged := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		err := s.connect(ctx)
		if err != nil {
			unplugged = noNetwork(err)
		}
		if ctx.Err() != nil || !s.setOffline(err != nil) {
			continue
		}
		stop()
		stop = func() {}
		if err == nil {
			s.log.Info("the fleet server is reached again")
			if unplugged {
				s.link.Reconnected()
			}
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

// noNetwork reports whether it is this host that reaches nothing, and not the
// server that does not answer.
func noNetwork(err error) bool {
	for _, e := range []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENETDOWN} {
		if errors.Is(err, e) {
			return true
		}
	}
	dns, ok := errors.AsType[*net.DNSError](err)
	return ok && !dns.IsNotFound
}

// setOffline reports whether that is news.
func (s *Supervisor) setOffline(off bool) (news bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	news = s.offline != off
	s.offline = off
	return news
}
