package network

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/minke-os/minke/internal/errdef"
)

// Networks of the drivers macvlan and ipvlan put containers beside the host, on
// an interface of it: their parent. One that is named eth0.10 and not there is
// made, a VLAN of eth0. A network without a parent, or an internal one, gets an
// interface of its own that leads nowhere.

// parent is the name of the parent interface.
func (n *state) parent() string {
	if n.options.parent == "" {
		return "dm-" + n.ID[:12]
	}
	return n.options.parent
}

// ensureParent finds or makes the parent. Called with h.mu held.
func (h *Host) ensureParent(n *state) error {
	link, err := h.links.LinkByName(n.parent())
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing):
		link, err = h.makeParent(n)
	case err == nil && link.Attrs().Index == n.ready:
		return nil
	}
	if err != nil {
		return err
	}
	if link.Attrs().Alias == h.alias() {
		if err := h.links.LinkSetUp(link); err != nil {
			return err
		}
	}
	n.ready = link.Attrs().Index
	return nil
}

func (h *Host) makeParent(n *state) (link netlink.Link, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = n.parent()
	base, tag, isVLAN := strings.Cut(n.parent(), ".")
	switch id, err := strconv.Atoi(tag); {
	case n.options.parent == "":
		link = &netlink.Dummy{LinkAttrs: attrs} // leads nowhere
	case !isVLAN:
		return nil, errdef.Invalid.Errorf("parent interface %s is not there; name one of this host's interfaces with -o parent=, or a VLAN of one, as eth0.10", n.parent())
	case err != nil || id < 1 || id > 4094:
		return nil, errdef.Invalid.Errorf("invalid subinterface vlan name %s: example formatting is eth0.10, with a VLAN ID from 1 to 4094", n.parent())
	default:
		lower, err := h.links.LinkByName(base)
		if err != nil {
			return nil, errdef.Invalid.Errorf("parent interface %s of VLAN %s is not there: %w", base, n.parent(), err)
		}
		attrs.ParentIndex = lower.Attrs().Index
		link = &netlink.Vlan{LinkAttrs: attrs, VlanId: id, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
	}
	err = h.links.LinkAdd(link)
	switch {
	case errors.Is(err, syscall.EOPNOTSUPP) && n.options.parent == "":
		return nil, errdef.Unavailable.Errorf("this kernel has no dummy interfaces for networks without a parent: enable DUMMY, or name a parent with -o parent=")
	case errors.Is(err, syscall.EOPNOTSUPP):
		return nil, errdef.Unavailable.Errorf("this kernel has no VLANs: enable VLAN_8021Q, or make %s by other means", n.parent())
	case err != nil:
		return nil, fmt.Errorf("make parent interface %s: %w", n.parent(), err)
	}
	if err := h.links.LinkSetAlias(link, h.alias()); err != nil {
		return nil, errors.Join(err, h.links.LinkDel(link))
	}
	return link, nil
}

// probe finds out whether the parent takes an interface of this kind, by making
// one and removing it.
func (h *Host) probe(n *state) error {
	parent, err := h.links.LinkByName(n.parent())
	if err != nil {
		return err
	}
	var tail [4]byte
	rand.Read(tail[:])
	link := h.offshoot(n, parent, "mk"+hex.EncodeToString(tail[:]))
	if err := h.addOffshoot(n, link); err != nil {
		return err
	}
	return h.links.LinkDel(link)
}

// addOffshoot makes an interface on the parent. One that does not get along
// with it may belong to a container that has just ended, which the kernel takes
// apart in its own time.
func (h *Host) addOffshoot(n *state, link netlink.Link) error {
	err := h.links.LinkAdd(link)
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end) && (errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.EINVAL)); {
		time.Sleep(20 * time.Millisecond)
		err = h.links.LinkAdd(link)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EOPNOTSUPP):
		return errdef.Unavailable.Errorf("this kernel has no %s interfaces: enable %s", n.Driver, strings.ToUpper(n.Driver))
	case errors.Is(err, syscall.EBUSY), errors.Is(err, syscall.EINVAL):
		return errdef.Forbidden.Errorf("parent interface %s does not take a %s interface in this mode (%w): it is used by another driver, in mode passthru or by a bridge", n.parent(), n.Driver, err)
	}
	return fmt.Errorf("%s interface on %s: %w", n.Driver, n.parent(), err)
}

// offshoot describes an interface on the parent.
func (h *Host) offshoot(n *state, parent netlink.Link, name string) netlink.Link {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = name, parent.Attrs().Index
	if n.options.mtu > 0 {
		attrs.MTU = n.options.mtu
	}
	if n.Driver == driverIPvlan {
		return &netlink.IPVlan{
			LinkAttrs: attrs,
			Mode:      map[string]netlink.IPVlanMode{"l2": netlink.IPVLAN_MODE_L2, "l3": netlink.IPVLAN_MODE_L3, "l3s": netlink.IPVLAN_MODE_L3S}[n.options.ipvlan],
			Flag:      map[string]netlink.IPVlanFlag{"bridge": netlink.IPVLAN_FLAG_BRIDGE, "private": netlink.IPVLAN_FLAG_PRIVATE, "vepa": netlink.IPVLAN_FLAG_VEPA}[n.options.flag],
		}
	}
	return &netlink.Macvlan{LinkAttrs: attrs, Mode: map[string]netlink.MacvlanMode{
		"bridge": netlink.MACVLAN_MODE_BRIDGE, "private": netlink.MACVLAN_MODE_PRIVATE,
		"vepa": netlink.MACVLAN_MODE_VEPA, "passthru": netlink.MACVLAN_MODE_PASSTHRU,
	}[n.options.macvlan]}
}

// sharesParent names another network of the driver on the same parent.
func (h *Host) sharesParent(n *state) string {
	for _, other := range h.networks {
		if other.ID != n.ID && other.Driver == n.Driver && !other.ConfigOnly && other.options.parent != "" && other.options.parent == n.options.parent {
			return other.Name
		}
	}
	return ""
}

// routesByDevice reports whether the network's way out is its interface: there
// is nothing like a gateway on layer 3.
func (n *state) routesByDevice() bool {
	return n.Driver == driverIPvlan && n.options.ipvlan != "l2"
}
