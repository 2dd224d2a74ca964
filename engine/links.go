package engine

import (
	"fmt"
	"net/netip"
	"path"
	"strings"

	"github.com/moby/moby/api/types/container"

	"github.com/minke-os/minke/internal/errdef"
)

// A link is a container's own name for another one. It is kept as an entry in
// /etc/hosts; the variables that Docker once set beside it are not made.
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
