package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/spf13/pflag"

	"github.com/minke-os/minke/engine"
)

// defaults are what containers get that say nothing of it.
type defaults struct {
	DNS          []string `json:"dns"`
	DNSOpts      []string `json:"dns-opts"`
	DNSSearch    []string `json:"dns-search"`
	HostGateway  string   `json:"host-gateway-ip"`
	HostGateways []string `json:"host-gateway-ips"`
	ShmSize      size     `json:"default-shm-size"`
	Ulimits      ulimits  `json:"default-ulimits"`
	Init         bool     `json:"init"`
	NoNewPrivs   bool     `json:"no-new-privileges"`
	Seccomp      string   `json:"seccomp-profile"`
	CgroupParent string   `json:"cgroup-parent"`
	CgroupnsMode string   `json:"default-cgroupns-mode"`
	IpcMode      string   `json:"default-ipc-mode"`
}

func (d *defaults) flags(f *pflag.FlagSet) {
	f.StringArrayVar(&d.DNS, "dns", d.DNS, "DNS server of containers; may be repeated")
	f.StringArrayVar(&d.DNSOpts, "dns-opt", d.DNSOpts, "resolver option of containers; may be repeated")
	f.StringArrayVar(&d.DNSSearch, "dns-search", d.DNSSearch, "search domain of containers; may be repeated")
	f.StringArrayVar(&d.HostGateways, "host-gateway-ip", d.HostGateways, "address that the name host-gateway of --add-host stands for, one of a family (default: the network's gateway)")
	f.Var(&d.ShmSize, "default-shm-size", "size of /dev/shm of containers (default: 64M)")
	f.Var(&d.Ulimits, "default-ulimit", "name=soft[:hard] of containers; may be repeated")
	f.BoolVar(&d.Init, "init", d.Init, "containers have an init process that reaps")
	f.BoolVar(&d.NoNewPrivs, "no-new-privileges", d.NoNewPrivs, "containers' processes gain no privileges")
	f.StringVar(&d.Seccomp, "seccomp-profile", d.Seccomp, "file of the seccomp profile of containers, or unconfined (default: Docker's)")
	f.StringVar(&d.CgroupParent, "cgroup-parent", d.CgroupParent, "control group that containers are below (default: /minke)")
	f.StringVar(&d.CgroupnsMode, "default-cgroupns-mode", d.CgroupnsMode, "host or private (default: private with cgroup version 2)")
	f.StringVar(&d.IpcMode, "default-ipc-mode", d.IpcMode, "private or shareable (default: private)")
}

// engine reads what names files and addresses, and checks the rest.
func (d *defaults) engine() (out engine.Defaults, err error) {
	out = engine.Defaults{
		DNSSearch: d.DNSSearch, DNSOptions: d.DNSOpts, ShmSize: int64(d.ShmSize), Ulimits: d.Ulimits, Init: d.Init, NoNewPrivileges: d.NoNewPrivs,
		CgroupParent: d.CgroupParent, CgroupnsMode: container.CgroupnsMode(d.CgroupnsMode), IpcMode: container.IpcMode(d.IpcMode),
	}
	if out.DNS, err = addresses("dns", d.DNS); err != nil {
		return out, err
	}
	gateways := d.HostGateways
	if d.HostGateway != "" {
		gateways = append(slices.Clone(gateways), d.HostGateway)
	}
	if out.HostGateway, err = addresses("host-gateway-ip", gateways); err != nil {
		return out, err
	}
	switch d.Seccomp {
	case "", "builtin":
	case "unconfined":
		out.Seccomp = d.Seccomp
	default:
		profile, err := os.ReadFile(d.Seccomp)
		if err != nil {
			return out, fmt.Errorf("seccomp-profile: %w", err)
		}
		out.Seccomp = string(profile)
	}
	return out, out.Check()
}

func addresses(name string, words []string) (out []netip.Addr, err error) {
	for _, w := range words {
		a, err := netip.ParseAddr(w)
		if err != nil {
			return nil, fmt.Errorf("invalid %s %q: want an address, for example 192.168.1.1", name, w)
		}
		out = append(out, a)
	}
	return out, nil
}

// size is a number of bytes, in words as 64M or in JSON as a number, too.
type size int64

func (s *size) Set(text string) error {
	n, err := units.RAMInBytes(text)
	*s = size(n)
	return err
}

func (s *size) String() string {
	if s == nil || *s == 0 {
		return ""
	}
	return strconv.FormatInt(int64(*s), 10)
}

func (s *size) Type() string { return "bytes" }

func (s *size) UnmarshalJSON(data []byte) error {
	var text string
	if json.Unmarshal(data, &text) == nil {
		return s.Set(text)
	}
	return json.Unmarshal(data, (*int64)(s))
}

// ulimits are name=soft:hard as flags, in JSON as dockerd has them:
// {"nofile": {"Name": "nofile", "Hard": 64000, "Soft": 64000}}.
type ulimits []*container.Ulimit

func (u *ulimits) Set(text string) error {
	l, err := units.ParseUlimit(text)
	if err != nil {
		return err
	}
	*u = append(slices.DeleteFunc(*u, func(old *container.Ulimit) bool { return old.Name == l.Name }), l)
	return nil
}

func (u *ulimits) String() string {
	if u == nil {
		return ""
	}
	var words []string
	for _, l := range *u {
		words = append(words, l.String())
	}
	return strings.Join(words, " ")
}

func (u *ulimits) Type() string { return "limit" }

func (u *ulimits) UnmarshalJSON(data []byte) error {
	var byName map[string]*container.Ulimit
	if err := json.Unmarshal(data, &byName); err != nil {
		return err
	}
	*u = nil
	for name, l := range byName {
		if l == nil || l.Name != "" && l.Name != name {
			return fmt.Errorf("default-ulimits: %q does not say the limit of that name", name)
		}
		l.Name = name
		*u = append(*u, l)
	}
	slices.SortFunc(*u, func(a, b *container.Ulimit) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

// dockerds are directives of dockerd's file that have no other meaning here than
// what is so anyway.
type dockerds struct {
	StorageDriver   string          `json:"storage-driver"`
	ExecOpts        []string        `json:"exec-opts"`
	IPTables        *bool           `json:"iptables"`
	IP6Tables       *bool           `json:"ip6tables"`
	IPForward       *bool           `json:"ip-forward"`
	IPMasq          *bool           `json:"ip-masq"`
	UserlandProxy   bool            `json:"userland-proxy"`
	Experimental    bool            `json:"experimental"`
	Features        map[string]bool `json:"features"`
	ShutdownTimeout int             `json:"shutdown-timeout"`
}

// check refuses what is not so.
func (d *dockerds) check() error {
	if d.StorageDriver != "" && d.StorageDriver != "overlay2" {
		return fmt.Errorf("storage-driver %s is not there: images are in minke's own store, over the kernel's overlay; remove the directive", d.StorageDriver)
	}
	for _, opt := range d.ExecOpts {
		if opt != "native.cgroupdriver=cgroupfs" {
			return fmt.Errorf("exec-opts %s is not there: minked writes control groups itself; remove the directive", opt)
		}
	}
	for name, on := range map[string]*bool{"iptables": d.IPTables, "ip6tables": d.IP6Tables, "ip-forward": d.IPForward, "ip-masq": d.IPMasq} {
		if on != nil && !*on {
			return fmt.Errorf("%s cannot be switched off: containers reach nothing without; use networks of their own (--internal, or com.docker.network.bridge.enable_ip_masquerade=false)", name)
		}
	}
	return nil
}
