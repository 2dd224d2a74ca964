package engine

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/minke-os/minke/engine/internal/spec"
	"github.com/minke-os/minke/internal/errdef"
)

// A link is a container's own name for another one: an entry in /etc/hosts,
// kept up to date, and on the default network variables that tell the other's
// address, ports and variables as they were when the container started.
type link struct{ name, alias string }

// parseLink reads "name", "name:alias", and "/name:/me/alias", the form in
// which Docker shows it.
func parseLink(text string) (link, error) {
	name, alias, ok := strings.Cut(text, ":")
	name = strings.TrimPrefix(name, "/")
	if !ok {
		alias = name
	}
	l := link{name, path.Base(alias)}
	if name == "" || alias == "" || strings.Contains(alias, ":") {
		return l, errdef.Invalid.Errorf("bad format for links: %s; want name:alias", text)
	}
	return l, nil
}

// checkLinks refuses links to containers that are not there, and settles
// names to IDs, so that a rename does not matter.
func (e *Engine) checkLinks(h *container.HostConfig) error {
	for i, text := range h.Links {
		l, err := parseLink(text)
		if err != nil {
			return err
		}
		c, err := e.find(l.name)
		if err != nil {
			return errdef.Invalid.Errorf("could not get container for %s: %w", l.name, err)
		}
		h.Links[i] = c.ID + ":" + l.alias
	}
	return nil
}

func (r *record) links() (out []link) {
	all := append([]string(nil), r.Host.Links...)
	for _, name := range sortedKeys(r.Networks) {
		all = append(all, r.Networks[name].Links...)
	}
	for _, text := range all {
		if l, err := parseLink(text); err == nil {
			out = append(out, l)
		}
	}
	return out
}

// linkedHosts are the lines of /etc/hosts for those linked containers that run
// on a network that r is on.
func (e *Engine) linkedHosts(r *record) (b []byte) {
	for _, l := range r.links() {
		c, other, err := e.findRunning(l.name)
		if err != nil {
			continue // rewriteLinkers comes when it starts
		}
		if ip := commonAddress(r, &other); ip.IsValid() {
			b = fmt.Appendf(b, "%s\t%s %s %s\n", ip, l.alias, other.Config.Hostname, c.snapshot().Name)
		}
	}
	return b
}

// commonAddress is other's address on a network that r is on, too.
func commonAddress(r, other *record) netip.Addr {
	for _, name := range sortedKeys(r.Networks) {
		if ep := other.Networks[name]; ep != nil && ep.IPAddress.IsValid() {
			return ep.IPAddress
		}
	}
	return netip.Addr{}
}

// withLinks is the container's configuration with the variables of its links.
// Those that the container sets itself win.
func (e *Engine) withLinks(r *record) *container.Config {
	var env []string
	for _, text := range r.Host.Links {
		l, err := parseLink(text)
		if err != nil {
			continue
		}
		_, other, err := e.findRunning(l.name)
		if err != nil {
			continue
		}
		if ip := commonAddress(r, &other); ip.IsValid() {
			env = append(env, linkVariables(l.alias, r.Name, ip, &other)...)
		}
	}
	if len(env) == 0 {
		return r.Config
	}
	c := *r.Config
	c.Env = spec.MergeEnv(env, c.Env)
	return &c
}

// linkVariables are those that programs from before user-defined networks read:
// DB_PORT, DB_PORT_5432_TCP_ADDR, DB_NAME, DB_ENV_…
func linkVariables(alias, owner string, ip netip.Addr, other *record) (env []string) {
	prefix := strings.ToUpper(strings.ReplaceAll(alias, "-", "_"))
	ports := slices.SortedFunc(maps.Keys(other.Config.ExposedPorts), func(a, b network.Port) int {
		return cmp.Or(strings.Compare(string(a.Proto()), string(b.Proto())), cmp.Compare(a.Num(), b.Num()))
	})
	for i, p := range ports {
		url := fmt.Sprintf("%s://%s", p.Proto(), netip.AddrPortFrom(ip, p.Num()))
		if i == 0 {
			env = append(env, prefix+"_PORT="+url)
		}
		own := fmt.Sprintf("%s_PORT_%d_%s", prefix, p.Num(), strings.ToUpper(string(p.Proto())))
		env = append(env, own+"="+url, own+"_ADDR="+ip.String(), fmt.Sprintf("%s_PORT=%d", own, p.Num()), own+"_PROTO="+string(p.Proto()))
	}
	env = append(env, fmt.Sprintf("%s_NAME=/%s/%s", prefix, owner, alias))
	for _, kv := range other.Config.Env {
		if name, _, ok := strings.Cut(kv, "="); ok && name != "HOME" && name != "PATH" {
			env = append(env, prefix+"_ENV_"+kv)
		}
	}
	return env
}

// rewriteLinkers tells those that link to a container its new address.
func (e *Engine) rewriteLinkers(target *record) {
	for _, c := range e.all() {
		r := c.snapshot()
		for _, l := range r.links() {
			if l.name != target.ID && l.name != target.Name {
				continue
			}
			if err := e.rewriteHosts(&r); err != nil {
				e.log.Warn("a linked container's address is out of date", "container", r.Name, "err", err)
			}
			break
		}
	}
}

// LinkRemove takes away a link, named container/alias.
func (e *Engine) LinkRemove(name string) error {
	owner, alias, ok := strings.Cut(strings.TrimPrefix(name, "/"), "/")
	if !ok {
		return errdef.Invalid.Errorf("bad parameter: the name of a link is container/alias, not %s", name)
	}
	c, err := e.find(owner)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	r := c.snapshot()
	host := *r.Host
	host.Links = nil
	for _, text := range r.Host.Links {
		if l, err := parseLink(text); err == nil && l.alias != alias {
			host.Links = append(host.Links, text)
		}
	}
	if len(host.Links) == len(r.Host.Links) {
		return errdef.NotFound.Errorf("could not get link /%s", name)
	}
	r = e.change(c, func(r *record) { r.Host = &host })
	return e.rewriteHosts(&r)
}
