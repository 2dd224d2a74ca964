package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"

	"github.com/spf13/pflag"
)

// config is what flags and the configuration file say. Its JSON names are the
// flags' names, as dockerd's daemon.json has them; flags win.
type config struct {
	DataRoot   string   `json:"data-root"`
	ExecRoot   string   `json:"exec-root"`
	Hosts      []string `json:"hosts"`
	Bridge     string   `json:"bridge"`
	BIP        prefix   `json:"bip"`
	PidFile    string   `json:"pidfile"`
	LogLevel   string   `json:"log-level"`
	Debug      bool     `json:"debug"`
	Mirrors    []string `json:"registry-mirrors"`
	Insecure   []string `json:"insecure-registries"`
	Runtime    string   `json:"runtime-path"`
	TLS        bool     `json:"tls"`
	TLSVerify  bool     `json:"tlsverify"`
	TLSCA      string   `json:"tlscacert"`
	TLSCert    string   `json:"tlscert"`
	TLSKey     string   `json:"tlskey"`
	Supervisor bool     `json:"supervisor"`
	Engine     string   `json:"engine"`
	SupListen  []string `json:"supervisor-listen"`
	BootDir    string   `json:"boot-dir"`
}

const defaultConfigFile = "/etc/minke/minked.json"

// parse reads flags and the file. It returns nil if only help or the version
// was asked for.
func parse(args []string) (*config, error) {
	c := &config{
		DataRoot: "/var/lib/minke", ExecRoot: "/run/minke", Hosts: []string{"unix:///run/minke/engine.sock"},
		Bridge: "minke0", LogLevel: "info", PidFile: "/run/minke/minked.pid", Supervisor: true,
		TLSCA: "/etc/minke/ca.pem", TLSCert: "/etc/minke/cert.pem", TLSKey: "/etc/minke/key.pem",
	}
	if err := c.readFile(configFile(args)); err != nil {
		return nil, err
	}
	f := pflag.NewFlagSet("minked", pflag.ContinueOnError)
	f.StringVar(&c.DataRoot, "data-root", c.DataRoot, "directory of what survives reboots: images, containers, volumes")
	f.StringVar(&c.ExecRoot, "exec-root", c.ExecRoot, "directory of what does not: sockets and the state of what runs")
	f.StringArrayVarP(&c.Hosts, "host", "H", c.Hosts, "address to serve the API on (unix:///path, tcp://host:port); may be repeated")
	f.StringVarP(&c.Bridge, "bridge", "b", c.Bridge, "bridge of the default network; one that exists is used and never changed")
	f.Var(&c.BIP, "bip", "address of that bridge, as 172.17.0.1/16")
	f.StringVarP(&c.PidFile, "pidfile", "p", c.PidFile, "file to write the process ID to")
	f.StringVarP(&c.LogLevel, "log-level", "l", c.LogLevel, "debug, info, warn or error")
	f.BoolVarP(&c.Debug, "debug", "D", c.Debug, "the same as --log-level debug")
	f.StringArrayVar(&c.Mirrors, "registry-mirror", c.Mirrors, "URL of a registry mirror; may be repeated")
	f.StringArrayVar(&c.Insecure, "insecure-registry", c.Insecure, "registry to talk to without TLS; may be repeated")
	f.StringVar(&c.Runtime, "runtime-path", c.Runtime, "the minke-runtime program (default: beside minked)")
	f.BoolVar(&c.TLS, "tls", c.TLS, "use TLS on tcp addresses; implied by --tlsverify")
	f.BoolVar(&c.TLSVerify, "tlsverify", c.TLSVerify, "take only clients with a certificate of --tlscacert")
	f.StringVar(&c.TLSCA, "tlscacert", c.TLSCA, "certificate of the authority that signs clients")
	f.StringVar(&c.TLSCert, "tlscert", c.TLSCert, "our certificate")
	f.StringVar(&c.TLSKey, "tlskey", c.TLSKey, "our key")
	f.BoolVar(&c.Supervisor, "supervisor", c.Supervisor, "run the supervisor; --supervisor=false for the engine alone")
	f.StringVar(&c.Engine, "engine", c.Engine, "supervise another engine at this address (unix:///var/run/docker.sock) instead of running our own")
	f.StringArrayVar(&c.SupListen, "supervisor-listen", c.SupListen, "host:port of the Supervisor API; may be repeated (default: loopback and the supervisor's own network)")
	f.StringVar(&c.BootDir, "boot-dir", c.BootDir, "directory of config.json and device-type.json")
	f.String("config-file", defaultConfigFile, "file with these settings in JSON")
	f.SortFlags = false
	showVersion := f.BoolP("version", "v", false, "print the version")
	f.Usage = func() {
		fmt.Fprintf(os.Stderr, "Usage: minked [OPTIONS]\n\nThe minke device daemon: container engine and supervisor.\n\nOptions:\n%s", f.FlagUsages())
	}
	switch err := f.Parse(args); {
	case errors.Is(err, pflag.ErrHelp):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("%w; see minked --help", err)
	case *showVersion:
		fmt.Println("minked", version)
		return nil, nil
	case f.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument %q; see minked --help", f.Arg(0))
	}
	if _, err := parseLevel(c.LogLevel); err != nil {
		return nil, err
	}
	if c.Engine != "" && !c.Supervisor {
		return nil, errors.New("--engine without a supervisor leaves nothing to do")
	}
	return c, nil
}

// configFile finds --config-file before the other flags are read, for they win
// over the file.
func configFile(args []string) (path string, named bool) {
	f := pflag.NewFlagSet("minked", pflag.ContinueOnError)
	f.ParseErrorsAllowlist.UnknownFlags = true
	f.Usage = func() {}
	file := f.String("config-file", defaultConfigFile, "")
	f.Parse(args) // errors are reported by the real reading
	return *file, f.Changed("config-file")
}

func (c *config) readFile(path string, named bool) error {
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) && !named {
		return nil
	}
	if err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(c); err != nil {
		return fmt.Errorf("configuration file %s: %w", path, err)
	}
	return nil
}

func (c *config) level() slog.Level {
	if c.Debug {
		return slog.LevelDebug
	}
	l, _ := parseLevel(c.LogLevel) // checked by parse
	return l
}

func parseLevel(s string) (slog.Level, error) {
	var l slog.Level
	if s == "fatal" { // dockerd's
		return slog.LevelError, nil
	}
	if err := l.UnmarshalText([]byte(s)); err != nil {
		return l, fmt.Errorf("invalid log level %q: want debug, info, warn or error", s)
	}
	return l, nil
}

// prefix is a netip.Prefix as a flag and in JSON.
type prefix struct{ netip.Prefix }

func (p *prefix) Set(s string) (err error) {
	if p.Prefix, err = netip.ParsePrefix(s); err != nil {
		return fmt.Errorf("invalid address: want for example 172.17.0.1/16")
	}
	return nil
}

func (p *prefix) String() string {
	if p == nil || !p.IsValid() {
		return ""
	}
	return p.Prefix.String()
}

func (p *prefix) Type() string { return "address" }
