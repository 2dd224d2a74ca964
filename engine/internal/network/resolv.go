package network

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// resolvFile is what /etc/resolv.conf says, by resolv.conf(5).
type resolvFile struct {
	servers []netip.Addr
	search  []string
	options []string
}

// hostResolv reads the host's file, each time anew, for it follows the
// network the host is on.
func hostResolv() resolvFile {
	data, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return resolvFile{}
	}
	return parseResolv(data)
}

func parseResolv(data []byte) (f resolvFile) {
	for _, line := range strings.Split(string(data), "\n") {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(words[1]); err == nil {
				f.servers = append(f.servers, a)
			}
		case "search", "domain":
			f.search = words[1:]
		case "options":
			f.options = append(f.options, words[1:]...)
		}
	}
	return f
}

// resolvConf is a member's /etc/resolv.conf: on a user-defined network it asks
// us, on the default one the host's servers that it can reach.
func resolvConf(m *member) []byte {
	f := hostResolv()
	if len(m.sandbox.DNS.Search) > 0 {
		f.search = slices.DeleteFunc(slices.Clone(m.sandbox.DNS.Search), func(s string) bool { return s == "." })
	}
	if len(m.sandbox.DNS.Options) > 0 {
		f.options = m.sandbox.DNS.Options
	}
	if len(m.sandbox.DNS.Servers) > 0 {
		f.servers = m.sandbox.DNS.Servers
	}
	switch {
	case m.resolver != nil:
		f.servers = []netip.Addr{resolverAddr}
		if !slices.ContainsFunc(f.options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
			f.options = append(slices.Clone(f.options), "ndots:0")
		}
	case len(m.sandbox.DNS.Servers) == 0:
		f.servers = reachable(f.servers)
	}
	return f.format()
}

// resolvedFile has the servers behind systemd-resolved's, which listens on the
// host's loopback (systemd-resolved.service(8)).
const resolvedFile = "/run/systemd/resolve/resolv.conf"

// reachable are the servers that a container reaches by itself: not those on
// the host's loopback.
func reachable(servers []netip.Addr) []netip.Addr {
	if len(servers) == 1 && servers[0] == netip.AddrFrom4([4]byte{127, 0, 0, 53}) {
		if data, err := os.ReadFile(resolvedFile); err == nil {
			servers = parseResolv(data).servers
		}
	}
	return slices.DeleteFunc(slices.Clone(servers), netip.Addr.IsLoopback)
}

func (f resolvFile) format() []byte {
	var b bytes.Buffer
	for _, s := range f.servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(f.search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(f.search, " "))
	}
	if len(f.options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(f.options, " "))
	}
	return b.Bytes()
}
