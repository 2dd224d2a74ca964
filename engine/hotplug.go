package engine

import (
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/engine/internal/device"
	"github.com/minke-os/minke/engine/internal/spec"
	"github.com/minke-os/minke/engine/internal/volume"
	"github.com/minke-os/minke/internal/uevent"
	"github.com/minke-os/minke/internal/userns"
)

// What is plugged in and pulled out reaches running containers on two ways:
// disks as volumes of the driver usb (startmounts.go), other devices as nodes
// and rules of access, here. Both compare what should be with what is, so that
// a lost or doubled message does no harm.

// watchDevices listens until the engine closes.
func (e *Engine) watchDevices() {
	ready := make(chan struct{})
	e.wg.Go(func() {
		<-ready
		e.rescanDevices()
	})
	e.wg.Go(e.settleDevicesLoop)
	e.wg.Go(func() {
		err := uevent.Listen(e.ctx, ready, e.deviceEvent)
		if err != nil {
			e.log.Warn("devices that are plugged in later will not be noticed", "err", err)
			select {
			case <-ready:
			default:
				close(ready)
			}
		}
	})
}

func (e *Engine) deviceEvent(ev uevent.Event) {
	if ev.Action == uevent.Rescan {
		e.rescanDevices()
		return
	}
	if ev.Name == "" {
		return
	}
	if ev.Subsystem == "block" && e.disks.Handle(ev.Action, ev.Name) {
		e.log.Debug("disk", "action", ev.Action, "name", ev.Name)
		e.volumes.DisksChanged()
	}
	e.settleDevicesSoon()
}

func (e *Engine) rescanDevices() {
	if e.disks.Rescan() {
		e.volumes.DisksChanged()
	}
	e.settleDevicesSoon()
}

func (e *Engine) findDisk(d volume.Disk) (volume.Partition, bool) {
	p, ok := e.disks.Find(d.Label, d.UUID, d.Path)
	return volume.Partition{Device: p.Device, Type: p.Type, Dirty: p.Dirty, Gone: p.Gone}, ok
}

func (e *Engine) settleDevicesSoon() {
	select {
	case e.devicesChanged <- struct{}{}:
	default:
	}
}

// busyRetry is when a container that was starting or stopping is looked at
// again.
const busyRetry = 200 * time.Millisecond

// settleDevicesLoop gives all running containers the devices they should have,
// whenever that may have changed.
func (e *Engine) settleDevicesLoop() {
	for {
		var later <-chan time.Time
		for _, c := range e.all() {
			if r := c.snapshot(); !r.runs() || !wantsDevices(&r) {
				continue
			}
			if !c.op.TryLock() {
				later = time.After(busyRetry)
				continue
			}
			e.settleDevices(c)
			c.op.Unlock()
		}
		select {
		case <-e.devicesChanged:
		case <-later:
		case <-e.ctx.Done():
			return
		}
	}
}

func wantsDevices(r *record) bool {
	return len(r.Host.Devices) > 0 || r.Config.Labels[device.Label] != ""
}

// settleDevices gives a running container the devices it should have. Called
// with c.op held.
func (e *Engine) settleDevices(c *Container) {
	r := c.snapshot()
	wants, rest, err := device.Wants(r.Host.Devices, r.Config.Labels)
	if err != nil || len(wants) == 0 {
		return // create has checked them
	}
	have, want := r.Plugged, e.devices.Nodes(wants)
	if slices.Equal(have, want) {
		return
	}
	if err := e.replug(&r, have, want, rest); err != nil {
		e.log.Error("device was plugged in or pulled out, but a container does not see it", "container", r.Name, "err", err)
		return
	}
	e.change(c, func(r *record) { r.Plugged = want })
	for _, n := range have {
		if !slices.Contains(want, n) {
			e.tellDevice("device-remove", &r, n)
		}
	}
	for _, n := range want {
		if !slices.Contains(have, n) {
			e.tellDevice("device-add", &r, n)
		}
	}
}

func (e *Engine) tellDevice(action events.Action, r *record, n device.Node) {
	e.log.Info(string(action), "container", r.Name, "device", n.Path)
	e.publish(action, r, map[string]string{"device": n.Path})
}

// replug changes rules and nodes of a running container. Access to what went
// ends first, and what came is allowed before its node is there.
func (e *Engine) replug(r *record, have, want []device.Node, rest []container.DeviceMapping) error {
	host := *r.Host
	host.Devices = rest
	rules, err := spec.DeviceRules(&host)
	if err != nil {
		return err
	}
	for _, n := range want {
		rules = append(rules, deviceRule(n))
	}
	requested, err := e.requestedRules(r.Host.DeviceRequests)
	if err != nil {
		return err
	}
	rules = append(rules, requested...)
	if err := e.rt.Update(e.ctx, r.ID, &specs.LinuxResources{Devices: rules}); err != nil {
		return err
	}
	root, err := os.OpenRoot(fmt.Sprintf("/proc/%d/root", r.Pid))
	if err != nil {
		return err
	}
	defer root.Close()
	for _, n := range have {
		if !slices.Contains(want, n) {
			if err := n.Unplug(root); err != nil {
				return err
			}
		}
	}
	ids, err := userns.Of(r.Pid)
	if err != nil {
		return err
	}
	return ids.AsRoot(func() error { // for directories that Plug makes
		for _, n := range want {
			if slices.Contains(have, n) {
				continue
			}
			// Its owners keep their numbers in the container, not on the host.
			if uid, gid, ok := ids.Host(n.UID, n.GID); ok {
				n.UID, n.GID = uid, gid
			}
			if err := n.Plug(root); err != nil {
				return err
			}
		}
		return nil
	})
}

func deviceRule(n device.Node) specs.LinuxDeviceCgroup {
	major, minor := int64(n.Major), int64(n.Minor)
	kind := "c"
	if n.Block {
		kind = "b"
	}
	return specs.LinuxDeviceCgroup{Allow: true, Type: kind, Major: &major, Minor: &minor, Access: n.Access}
}

// pluggedIn is the host configuration for a start: with the devices that are
// there now in place of those that may come and go.
func (e *Engine) pluggedIn(r *record) (*container.HostConfig, []device.Node, error) {
	if !wantsDevices(r) {
		return r.Host, nil, nil
	}
	wants, rest, err := device.Wants(r.Host.Devices, r.Config.Labels)
	if err != nil {
		return nil, nil, err
	}
	nodes := e.devices.Nodes(wants)
	host := *r.Host
	host.Devices = rest
	for _, n := range nodes {
		host.Devices = append(host.Devices, n.Mapping())
	}
	return &host, nodes, nil
}
