package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/pflag"

	"github.com/minke-os/minke/engine"
)

// config is what flags and the configuration file say. Its JSON names are the
// flags' names, as dockerd's daemon.json has them, in the plural where a flag
// may be repeated. What is said in both places is refused, as by dockerd.
type config struct {
	DataRoot       string   `json:"data-root"`
	ExecRoot       string   `json:"exec-root"`
	Hosts          []string `json:"hosts"`
	Group          string   `json:"group"`
	Bridge         string   `json:"bridge"`
	BIP            prefix   `json:"bip"`
	FixedCIDR      prefix   `json:"fixed-cidr"`
	IPv6           bool     `json:"ipv6"`
	FixedV6        prefix   `json:"fixed-cidr-v6"`
	Pools          pools    `json:"default-address-pools"`
	MTU            int      `json:"mtu"`
	ICC            bool     `json:"icc"`
	BindIP         address  `json:"ip"`
	PidFile        string   `json:"pidfile"`
	LogLevel       string   `json:"log-level"`
	Debug          bool     `json:"debug"`
	Mirrors        []string `json:"registry-mirrors"`
	Insecure       []string `json:"insecure-registries"`
	Runtime        string   `json:"runtime-path"`
	Runtimes       runtimes `json:"runtimes"`
	DefaultRuntime string   `json:"default-runtime"`
	TLS            bool     `json:"tls"`
	TLSVerify      bool     `json:"tlsverify"`
	TLSCA          string   `json:"tlscacert"`
	TLSCert        string   `json:"tlscert"`
	TLSKey         string   `json:"tlskey"`
	Supervisor     bool     `json:"supervisor"`
	Engine         string   `json:"engine"`
	SupListen      []string `json:"supervisor-listen"`
	BootDir        string   `json:"boot-dir"`
	Preload        string   `json:"preload"`
	LED            string   `json:"led"`
	Labels         []string `json:"labels"`
	UserRemap      string   `json:"userns-remap"`
	CDIDirs        []string `json:"cdi-spec-dirs"`
	LogDriver      string   `json:"log-driver"`
	LogOpts        options  `json:"log-opts"`
	Downloads      int      `json:"max-concurrent-downloads"`
	Uploads        int      `json:"max-concurrent-uploads"`
	Tries          int      `json:"max-download-attempts"`
	defaults
	dockerds
	// LiveRestore is always so; it is here for files that were written for dockerd.
	LiveRestore bool `json:"live-restore"`

	validate bool // only say whether this is all right
}

const defaultConfigFile = "/etc/minke/minked.json"

// parse reads flags and the file. It returns nil if only help or the version
// was asked for.
func parse(args []string) (*config, error) {
	c := &config{
		DataRoot: "/var/lib/minke", ExecRoot: "/run/minke", Hosts: []string{"unix:///run/minke/engine.sock"},
		Bridge: "minke0", LogLevel: "info", PidFile: "/run/minke/minked.pid", Supervisor: true,
		ICC: true, LogDriver: "json-file", LiveRestore: true, LogOpts: options{},
		TLSCA: "/etc/minke/ca.pem", TLSCert: "/etc/minke/cert.pem", TLSKey: "/etc/minke/key.pem",
	}
	path, named := configFile(args)
	inFile, err := c.readFile(path, named)
	if err != nil {
		return nil, err
	}
	f := pflag.NewFlagSet("minked", pflag.ContinueOnError)
	f.StringVar(&c.DataRoot, "data-root", c.DataRoot, "directory of what survives reboots: images, containers, volumes")
	f.StringVar(&c.ExecRoot, "exec-root", c.ExecRoot, "directory of what does not: sockets and the state of what runs")
	f.StringArrayVarP(&c.Hosts, "host", "H", c.Hosts, "address to serve the API on (unix:///path, tcp://host:port, fd:// for systemd's sockets); may be repeated")
	f.StringVarP(&c.Group, "group", "G", c.Group, "group that may use unix sockets; the default is docker's where there is one")
	f.StringVarP(&c.Bridge, "bridge", "b", c.Bridge, "bridge of the default network; one that exists is used and never changed")
	f.Var(&c.BIP, "bip", "address of that bridge, as 172.17.0.1/16")
	f.Var(&c.FixedCIDR, "fixed-cidr", "the part of its subnet that containers get addresses of")
	f.BoolVar(&c.IPv6, "ipv6", c.IPv6, "the default network has IPv6, too")
	f.Var(&c.FixedV6, "fixed-cidr-v6", "its IPv6 subnet; the default is a unique local one")
	f.IntVar(&c.MTU, "mtu", c.MTU, "MTU of the default network")
	f.BoolVar(&c.ICC, "icc", c.ICC, "containers of the default network reach each other")
	f.Var(&c.BindIP, "ip", "address to publish its ports on that name none")
	f.Var(&c.Pools, "default-address-pool", "base=10.0.0.0/8,size=24: where networks that name no subnet get one; may be repeated")
	f.StringVarP(&c.PidFile, "pidfile", "p", c.PidFile, "file to write the process ID to")
	f.StringVarP(&c.LogLevel, "log-level", "l", c.LogLevel, "debug, info, warn or error")
	f.BoolVarP(&c.Debug, "debug", "D", c.Debug, "the same as --log-level debug")
	f.StringArrayVar(&c.Mirrors, "registry-mirror", c.Mirrors, "URL of a registry mirror; may be repeated")
	f.StringArrayVar(&c.Insecure, "insecure-registry", c.Insecure, "registry to talk to without TLS; may be repeated")
	f.StringVar(&c.Runtime, "runtime-path", c.Runtime, "the minke-runtime program (default: beside minked)")
	f.Var(&c.Runtimes, "add-runtime", "another OCI runtime for docker run --runtime; may be repeated (runc and crun are there if they are installed)")
	f.StringVar(&c.DefaultRuntime, "default-runtime", c.DefaultRuntime, "the runtime of containers that name none (default: minke-runtime)")
	f.BoolVar(&c.TLS, "tls", c.TLS, "use TLS on tcp addresses; implied by --tlsverify")
	f.BoolVar(&c.TLSVerify, "tlsverify", c.TLSVerify, "take only clients with a certificate of --tlscacert")
	f.StringVar(&c.TLSCA, "tlscacert", c.TLSCA, "certificate of the authority that signs clients")
	f.StringVar(&c.TLSCert, "tlscert", c.TLSCert, "our certificate")
	f.StringVar(&c.TLSKey, "tlskey", c.TLSKey, "our key")
	f.BoolVar(&c.Supervisor, "supervisor", c.Supervisor, "run the supervisor; --supervisor=false for the engine alone")
	f.StringVar(&c.Engine, "engine", c.Engine, "supervise another engine at this address (unix:///var/run/docker.sock) instead of running our own")
	f.StringArrayVar(&c.SupListen, "supervisor-listen", c.SupListen, "host:port of the Supervisor API; may be repeated (default: loopback and the supervisor's own network)")
	f.StringVar(&c.BootDir, "boot-dir", c.BootDir, "directory of config.json and device-type.json")
	f.StringVar(&c.Preload, "preload", c.Preload, "file of the applications a new device starts with (default: apps.json in the data root)")
	f.StringVar(&c.LED, "led", c.LED, "brightness file of the LED that shows which device this is")
	f.StringArrayVar(&c.Labels, "label", c.Labels, "key=value label of this daemon, shown by docker info; may be repeated")
	f.StringVar(&c.UserRemap, "userns-remap", c.UserRemap, "give containers users of their own: user[:group] whose subordinate IDs they get, or default")
	f.StringArrayVar(&c.CDIDirs, "cdi-spec-dir", c.CDIDirs, "directory of CDI device specifications; may be repeated (default: /etc/cdi, /var/run/cdi)")
	f.StringVar(&c.LogDriver, "log-driver", c.LogDriver, "log driver of containers that name none")
	f.Var(&c.LogOpts, "log-opt", "key=value option of that driver; may be repeated")
	f.IntVar(&c.Downloads, "max-concurrent-downloads", c.Downloads, "layers of an image on their way at once, at most 3 (default: 3)")
	f.IntVar(&c.Uploads, "max-concurrent-uploads", c.Uploads, "the same of pushes (default: 3)")
	f.IntVar(&c.Tries, "max-download-attempts", c.Tries, "how often a request to a registry is repeated (default: 5)")
	c.defaults.flags(f)
	f.BoolVar(&c.LiveRestore, "live-restore", c.LiveRestore, "accepted: containers always outlive this process")
	f.BoolVar(&c.validate, "validate", false, "say whether flags and file are all right, and end")
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
	if err := conflicts(f, inFile, path); err != nil {
		return nil, err
	}
	return c, c.check()
}

// check says what is wrong beyond the words' forms.
func (c *config) check() error {
	if _, err := parseLevel(c.LogLevel); err != nil {
		return err
	}
	if c.Engine != "" && !c.Supervisor {
		return errors.New("--engine without a supervisor leaves nothing to do")
	}
	if !c.LiveRestore {
		return errors.New("live-restore cannot be switched off: containers always outlive minked; stop them first if they shall end")
	}
	for _, l := range c.Labels {
		if key, _, ok := strings.Cut(l, "="); !ok || key == "" {
			return fmt.Errorf("bad attribute format: %s; want key=value", l)
		}
	}
	for name, n := range map[string]int{"max-concurrent-downloads": c.Downloads, "max-concurrent-uploads": c.Uploads, "max-download-attempts": c.Tries} {
		if n < 0 {
			return fmt.Errorf("invalid %s %d: want a number above 0", name, n)
		}
	}
	if _, err := c.defaults.engine(); err != nil {
		return err
	}
	if err := c.dockerds.check(); err != nil {
		return err
	}
	if err := engine.CheckNetwork(c.network()); err != nil {
		return err
	}
	return engine.CheckLog(container.LogConfig{Type: c.LogDriver, Config: c.LogOpts})
}

// flagNames are the flags whose name in the file is the plural.
var flagNames = map[string]string{
	"hosts": "host", "registry-mirrors": "registry-mirror", "insecure-registries": "insecure-registry", "labels": "label", "log-opts": "log-opt", "cdi-spec-dirs": "cdi-spec-dir", "runtimes": "add-runtime",
	"default-address-pools": "default-address-pool", "dns-opts": "dns-opt", "host-gateway-ips": "host-gateway-ip", "default-ulimits": "default-ulimit",
}

// conflicts refuses what is said on the command line and in the file: nobody
// could tell which of them is meant.
func conflicts(f *pflag.FlagSet, inFile map[string]json.RawMessage, path string) error {
	var both []string
	for _, name := range slices.Sorted(maps.Keys(inFile)) {
		if flag := f.Lookup(cmp.Or(flagNames[name], name)); flag != nil && flag.Changed {
			both = append(both, fmt.Sprintf("%s: (from flag: %s, from file: %s)", name, flag.Value, inFile[name]))
		}
	}
	if len(both) == 0 {
		return nil
	}
	return fmt.Errorf("unable to configure minked with file %s: the following directives are specified both as a flag and in the configuration file: %s", path, strings.Join(both, ", "))
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

// readFile reads the file, if there is one or it was named, and returns what it
// says, word by word.
func (c *config) readFile(path string, named bool) (inFile map[string]json.RawMessage, err error) {
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) && !named {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, nil
	}
	if err := json.Unmarshal(data, &inFile); err != nil {
		return nil, fmt.Errorf("unable to configure minked with file %s: %w", path, err)
	}
	if unknown := unknownNames(inFile); len(unknown) > 0 {
		return nil, fmt.Errorf("unable to configure minked with file %s: the following directives don't match any configuration option: %s", path, strings.Join(unknown, ", "))
	}
	if err := json.Unmarshal(data, c); err != nil {
		return nil, fmt.Errorf("unable to configure minked with file %s: %w", path, err)
	}
	return inFile, nil
}

func unknownNames(inFile map[string]json.RawMessage) (out []string) {
	known := map[string]bool{}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[config]()) {
		known[f.Tag.Get("json")] = true
	}
	for _, name := range slices.Sorted(maps.Keys(inFile)) {
		if !known[name] {
			out = append(out, name)
		}
	}
	return out
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

// runtimes is a flag that names programs.
type runtimes map[string]engine.Runtime

func (r *runtimes) Set(s string) error {
	name, path, ok := strings.Cut(s, "=")
	if !ok || name == "" || path == "" {
		return fmt.Errorf("invalid runtime %q: want for example crun=/usr/bin/crun", s)
	}
	if *r == nil {
		*r = runtimes{}
	}
	(*r)[name] = engine.Runtime{Path: path}
	return nil
}

func (r *runtimes) String() string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(*r)) {
		words = append(words, name+"="+(*r)[name].Path)
	}
	return strings.Join(words, ",")
}

func (r *runtimes) Type() string { return "name=path" }

// options are key=value pairs as flags, an object in JSON.
type options map[string]string

func (o *options) Set(s string) error {
	k, v, ok := strings.Cut(s, "=")
	if !ok || k == "" {
		return errors.New("want key=value")
	}
	if *o == nil {
		*o = options{}
	}
	(*o)[k] = v
	return nil
}

func (o *options) String() string {
	if o == nil || len(*o) == 0 {
		return ""
	}
	return fmt.Sprint(map[string]string(*o))
}

func (o *options) Type() string { return "key=value" }
