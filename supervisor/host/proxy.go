package host

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/minke-os/minke/internal/durable"
	"github.com/minke-os/minke/internal/errdef"
)

// A Proxy is how connections leave the device: redsocks turns them there. Its
// configuration is in system-proxy/redsocks.conf on the boot partition, with
// exceptions in system-proxy/no_proxy, one a line.
type Proxy struct {
	Type     string   `json:"type,omitempty"`
	IP       string   `json:"ip,omitempty"`
	Port     int      `json:"port,omitempty"`
	Login    string   `json:"login,omitempty"`
	Password string   `json:"password,omitempty"`
	DNS      string   `json:"dns,omitempty"` // ip:port
	NoProxy  []string `json:"noProxy,omitempty"`
}

// ProxyTypes are those that redsocks knows.
var ProxyTypes = []string{"socks4", "socks5", "http-connect", "http-relay"}

func (h *Host) proxyDir() string { return filepath.Join(h.o.BootDir, "system-proxy") }

// Proxy reads the configuration; there is none if ok is false.
func (h *Host) Proxy() (p Proxy, ok bool, err error) {
	data, err := os.ReadFile(filepath.Join(h.proxyDir(), "redsocks.conf"))
	if errors.Is(err, fs.ErrNotExist) {
		return p, false, nil
	}
	if err != nil {
		return p, false, err
	}
	p = parseRedsocks(string(data))
	list, err := os.ReadFile(filepath.Join(h.proxyDir(), "no_proxy"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return p, false, err
	}
	p.NoProxy = strings.Fields(string(list))
	return p, true, nil
}

// parseRedsocks reads "section { key = value; }".
func parseRedsocks(text string) (p Proxy) {
	section, dnsIP, dnsPort := "", "", ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutSuffix(line, "{"); ok {
			section = strings.TrimSpace(name)
			continue
		}
		key, value, ok := strings.Cut(strings.TrimSuffix(line, ";"), "=")
		if !ok {
			continue
		}
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if s, err := strconv.Unquote(value); err == nil {
			value = s
		}
		switch section + "." + key {
		case "redsocks.type":
			p.Type = value
		case "redsocks.ip":
			p.IP = value
		case "redsocks.port":
			p.Port, _ = strconv.Atoi(value)
		case "redsocks.login":
			p.Login = value
		case "redsocks.password":
			p.Password = value
		case "dnsu2t.remote_ip":
			dnsIP = value
		case "dnsu2t.remote_port":
			dnsPort = value
		}
	}
	if dnsIP != "" {
		p.DNS = dnsIP + ":" + dnsPort
	}
	return p
}

// Check says what is wrong with a configuration.
func (p Proxy) Check() error {
	if p.Type != "" && !slices.Contains(ProxyTypes, p.Type) {
		return errdef.Invalid.Errorf("proxy.type: want %s, not %q", strings.Join(ProxyTypes, ", "), p.Type)
	}
	if p.DNS != "" {
		if _, err := netip.ParseAddrPort(p.DNS); err != nil {
			return errdef.Invalid.Errorf("proxy.dns: want an address such as 8.8.8.8:53, not %q", p.DNS)
		}
	}
	for _, s := range append([]string{p.IP, p.Login, p.Password}, p.NoProxy...) {
		if strings.ContainsAny(s, "\n\r\";{}") {
			return errdef.Invalid.Errorf("proxy: %q has a character that its file cannot hold", s)
		}
	}
	return nil
}

// SetProxy writes the configuration; nil removes it. Exceptions alone leave
// redsocks.conf as it is.
func (h *Host) SetProxy(p *Proxy) error {
	conf, list := filepath.Join(h.proxyDir(), "redsocks.conf"), filepath.Join(h.proxyDir(), "no_proxy")
	if p == nil {
		for _, path := range []string{conf, list} {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil
	}
	if err := p.Check(); err != nil {
		return err
	}
	if err := os.MkdirAll(h.proxyDir(), 0o755); err != nil {
		return err
	}
	if err := durable.WriteFile(list, []byte(strings.Join(append(slices.Clone(p.NoProxy), ""), "\n")), 0o644); err != nil {
		return err
	}
	had, err := os.ReadFile(conf)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// What somebody wrote by hand stays where nothing of it changes.
	if p.Type == "" && p.IP == "" || err == nil && string(parseRedsocks(string(had)).redsocks()) == string(p.redsocks()) {
		return nil
	}
	return durable.WriteFile(conf, p.redsocks(), 0o644)
}

func (p Proxy) redsocks() []byte {
	var b bytes.Buffer
	b.WriteString("base {\n\tlog_debug = off;\n\tlog_info = on;\n\tlog = stderr;\n\tdaemon = off;\n\tredirector = iptables;\n}\n\n")
	fmt.Fprintf(&b, "redsocks {\n\ttype = %s;\n\tip = %s;\n\tport = %d;\n", p.Type, p.IP, p.Port)
	for _, kv := range [][2]string{{"login", p.Login}, {"password", p.Password}} {
		if kv[1] != "" {
			fmt.Fprintf(&b, "\t%s = %q;\n", kv[0], kv[1])
		}
	}
	b.WriteString("\tlocal_ip = 127.0.0.1;\n\tlocal_port = 12345;\n}\n")
	if dns, err := netip.ParseAddrPort(p.DNS); err == nil {
		fmt.Fprintf(&b, "\ndnsu2t {\n\tremote_ip = %s;\n\tremote_port = %d;\n\tlocal_ip = 127.0.0.1;\n\tlocal_port = 53;\n}\n", dns.Addr(), dns.Port())
	}
	return b.Bytes()
}
