// Package connect finds the engine and the supervisor that commands talk to.
//
// The engine is the one named by -H, MINKE_HOST or DOCKER_HOST, else that of
// the device named by --supervisor, else the first of the usual sockets that
// exists: minke's, balenaEngine's, Docker's. Nothing is contacted before it is
// used.
package connect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"

	"github.com/moby/moby/client"

	"github.com/minke-os/minke/cli/term"
)

// A Session is what all commands of one invocation share.
type Session struct {
	term.Streams
	Program    string // the name it was called by
	Host       string // -H
	Supervisor string // --supervisor, a URL
	TLS        TLS
	Getenv     func(string) string
	Exit       *Exit
}

// An Exit is a status other than failure that a command ends with: a
// container's.
type Exit struct{ Code int }

// TLS is how an engine on TCP is talked to.
type TLS struct {
	On, Verify    bool
	CA, Cert, Key string
}

const (
	defaultSupervisor = "http://127.0.0.1:48484"
	devicePort        = "2375" // where a device in development offers its engine
)

var sockets = []string{"/run/minke/engine.sock", "/var/run/balena-engine.sock", "/var/run/docker.sock"}

// EngineHost is the address of the engine.
func (s *Session) EngineHost() string {
	if h := cmp.Or(s.Host, s.Getenv("MINKE_HOST"), s.Getenv("DOCKER_HOST")); h != "" {
		if !strings.Contains(h, "://") {
			return "tcp://" + h
		}
		return h
	}
	if device := s.device(); device != "" {
		return "tcp://" + net.JoinHostPort(device, devicePort)
	}
	for _, path := range sockets {
		if st, err := os.Stat(path); err == nil && st.Mode()&os.ModeSocket != 0 {
			return "unix://" + path
		}
	}
	return "unix://" + sockets[0]
}

// device is the host of a supervisor elsewhere: what is built must be built
// there.
func (s *Session) device() string {
	u, err := url.Parse(s.SupervisorURL())
	if err != nil || u.Hostname() == "localhost" || strings.HasPrefix(u.Hostname(), "127.") || u.Hostname() == "::1" {
		return ""
	}
	return u.Hostname()
}

// Engine is a client of the engine.
func (s *Session) Engine(more ...client.Opt) (*client.Client, error) {
	host := s.EngineHost()
	opts := append([]client.Opt{client.WithHost(host)}, more...)
	if s.TLS.On || s.TLS.Verify {
		opts = append(opts, client.WithTLSClientConfig(s.TLS.CA, s.TLS.Cert, s.TLS.Key))
	}
	c, err := client.New(opts...)
	if err != nil {
		return nil, fmt.Errorf("engine %s: %w", host, err)
	}
	return c, nil
}

// SupervisorURL is the address of the Supervisor API. A device's name or
// address is enough.
func (s *Session) SupervisorURL() string {
	u := cmp.Or(s.Supervisor, s.Getenv("MINKE_SUPERVISOR"), s.Getenv("BALENARC_SUPERVISOR_ADDRESS"), defaultSupervisor)
	if !strings.Contains(u, "://") {
		if !strings.Contains(u, ":") {
			u += ":48484"
		}
		u = "http://" + u
	}
	return strings.TrimRight(u, "/")
}

// Explain adds to an error what a person can do about it.
func (s *Session) Explain(err error) error {
	switch {
	case err == nil || errors.Is(err, context.Canceled):
		return err
	case client.IsErrConnectionFailed(err):
		return fmt.Errorf("cannot reach the engine at %s. Is it running? Start it with \"minked\" (as root), or name another one with -H or MINKE_HOST", s.EngineHost())
	case isDial(err):
		return fmt.Errorf("cannot reach the supervisor at %s. Is it running? Start it with \"minked\" (as root), or name a device with --supervisor or MINKE_SUPERVISOR", s.SupervisorURL())
	}
	return err
}

func isDial(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}
