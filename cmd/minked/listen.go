package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// listen opens the unix:// and tcp:// addresses that the API is served on.
func listen(cfg *config, log *slog.Logger) ([]net.Listener, error) {
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
			l, err = listenUnix(addr)
		case "tcp":
			l, err = listenTCP(addr, cfg, log)
		default:
			err = fmt.Errorf("unknown scheme %q: want unix or tcp", scheme)
		}
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", h, err)
		}
		out = append(out, l)
	}
	return out, nil
}

// listenTCP uses TLS if it is asked for. Whoever reaches the API is root here,
// so an address without it is warned of.
func listenTCP(addr string, cfg *config, log *slog.Logger) (net.Listener, error) {
	conf, err := tlsConfig(cfg)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	if conf == nil {
		log.Warn("the API is open to everyone who reaches this address, as root and without a password; use --tlsverify", "address", addr)
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

func listenUnix(path string) (net.Listener, error) {
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
	return l, os.Chmod(path, 0o660)
}
