package main

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
)

// listen opens the unix:// and tcp:// addresses that the API is served on, and
// takes the sockets of fd://.
func listen(cfg *config, manager service, log *slog.Logger) ([]net.Listener, error) {
	var out []net.Listener
	for _, h := range cfg.Hosts {
		scheme, addr, ok := strings.Cut(h, "://")
		if !ok {
			return nil, fmt.Errorf("invalid address %q: want unix:///path or tcp://host:port", h)
		}
		var l net.Listener
		var err error
		switch scheme {
		case "unix":
			l, err = listenUnix(addr, cfg.Group)
		case "tcp":
			l, err = listenTCP(addr, cfg, log)
		case "fd":
			var given []net.Listener
			if given, err = listenFDs(addr, cfg, manager, log); err == nil {
				out = append(out, given...)
				continue
			}
		default:
			err = fmt.Errorf("unknown scheme %q: want unix, tcp or fd", scheme)
		}
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", h, err)
		}
		out = append(out, l)
	}
	return out, nil
}

// listenFDs takes the service manager's sockets. Those of TCP get TLS as ours do.
func listenFDs(which string, cfg *config, manager service, log *slog.Logger) ([]net.Listener, error) {
	list, err := manager.listeners(which)
	if err != nil {
		return nil, err
	}
	for i, l := range list {
		if l.Addr().Network() != "tcp" {
			continue
		}
		if list[i], err = secured(l, cfg, log); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func listenTCP(addr string, cfg *config, log *slog.Logger) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	return secured(l, cfg, log)
}

// secured uses TLS if it is asked for. Whoever reaches the API is root here, so
// an address without it is warned of.
func secured(l net.Listener, cfg *config, log *slog.Logger) (net.Listener, error) {
	conf, err := tlsConfig(cfg)
	if err != nil {
		l.Close()
		return nil, err
	}
	if conf == nil {
		log.Warn("the API is open to everyone who reaches this address, as root and without a password; use --tlsverify", "address", l.Addr())
		return l, nil
	}
	return tls.NewListener(l, conf), nil
}

// tlsConfig is nil without --tls and --tlsverify.
func tlsConfig(cfg *config) (*tls.Config, error) {
	if !cfg.TLS && !cfg.TLSVerify {
		return nil, nil
	}
	own, err := tls.LoadX509KeyPair(cfg.TLSCert, cfg.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("certificate and key (--tlscert, --tlskey): %w", err)
	}
	conf := &tls.Config{Certificates: []tls.Certificate{own}, MinVersion: tls.VersionTLS12}
	if !cfg.TLSVerify {
		return conf, nil
	}
	ca, err := os.ReadFile(cfg.TLSCA)
	if err != nil {
		return nil, fmt.Errorf("certificate of the authority (--tlscacert): %w", err)
	}
	conf.ClientCAs, conf.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !conf.ClientCAs.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s (--tlscacert) holds no certificate", cfg.TLSCA)
	}
	return conf, nil
}

// dockersGroup owns the socket where it exists and no --group is given, as
// with dockerd.
const dockersGroup = "docker"

func listenUnix(path, group string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("another process answers on %s; stop it or choose another --host", path)
	}
	// A leftover of a process that was killed.
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := openTo(path, group); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// openTo lets root and a group use the socket.
func openTo(path, group string) error {
	g, err := user.LookupGroup(cmp.Or(group, dockersGroup))
	switch {
	case err == nil:
		gid, err := strconv.Atoi(g.Gid)
		if err != nil {
			return err
		}
		if err := os.Chown(path, 0, gid); err != nil {
			return err
		}
	case group != "":
		return fmt.Errorf("--group: %w", err)
	}
	return os.Chmod(path, 0o660)
}
