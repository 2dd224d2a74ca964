package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ChangeDevices gives a running group other device rules. Access that both the
// old rules and the new ones allow is never interrupted.
func (g *Group) ChangeDevices(rules []specs.LinuxDeviceCgroup) error {
	if len(rules) == 0 {
		return nil
	}
	rules = append(rules[:len(rules):len(rules)], alwaysAllowed...)
	if dir, ok := g.Paths["devices"]; ok {
		return changeDevicesV1(dir, rules)
	}
	return changeDevicesV2(g.Paths[Unified], rules)
}

// changeDevicesV1 writes what differs from the list that the kernel has. Rules
// that do more than allow devices after denying all have no such list, and are
// written anew.
func changeDevicesV1(dir string, rules []specs.LinuxDeviceCgroup) error {
	data, err := os.ReadFile(filepath.Join(dir, "devices.list"))
	if err != nil {
		return err
	}
	stale := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		stale[strings.TrimSpace(line)] = true
	}
	if stale["a *:* rwm"] || !isAllowList(rules) {
		return devicesV1(dir, rules)
	}
	var changes []specs.LinuxDeviceCgroup
	for _, d := range rules[1:] {
		line := ruleLine(d)
		if !stale[line] {
			changes = append(changes, d)
		}
		delete(stale, line)
	}
	for line := range stale {
		d, err := parseRule(line)
		if err != nil {
			return err
		}
		changes = append(changes, d)
	}
	// What goes first would take away what comes of the same device.
	for i, j := 0, len(changes)-1; i < j; i, j = i+1, j-1 {
		changes[i], changes[j] = changes[j], changes[i]
	}
	return devicesV1(dir, changes)
}

// isAllowList reports whether the rules deny all and then only allow.
func isAllowList(rules []specs.LinuxDeviceCgroup) bool {
	for i, d := range rules {
		all := (d.Type == "" || d.Type == "a") && number(d.Major) == "*" && number(d.Minor) == "*" && len(accessOf(d)) == 3
		if d.Allow != (i > 0) || i == 0 && !all || i > 0 && (d.Type == "" || d.Type == "a") {
			return false
		}
	}
	return len(rules) > 0
}

// ruleLine is a rule as devices.list has it, with the letters of the access in
// the kernel's order.
func ruleLine(d specs.LinuxDeviceCgroup) string {
	access := ""
	for _, c := range "rwm" {
		if strings.ContainsRune(accessOf(d), c) {
			access += string(c)
		}
	}
	return fmt.Sprintf("%s %s:%s %s", d.Type, number(d.Major), number(d.Minor), access)
}

// parseRule reads a line of devices.list as a rule that denies it.
func parseRule(line string) (specs.LinuxDeviceCgroup, error) {
	d := specs.LinuxDeviceCgroup{}
	var major, minor string
	line = strings.Replace(line, ":", " ", 1)
	if _, err := fmt.Sscanf(line, "%s %s %s %s", &d.Type, &major, &minor, &d.Access); err != nil {
		return d, fmt.Errorf("device rule %q: %w", line, err)
	}
	for _, n := range []struct {
		text string
		to   **int64
	}{{major, &d.Major}, {minor, &d.Minor}} {
		if n.text == "*" {
			continue
		}
		v := new(int64)
		if _, err := fmt.Sscan(n.text, v); err != nil {
			return d, fmt.Errorf("device rule %q: %w", line, err)
		}
		*n.to = v
	}
	return d, nil
}

// changeDevicesV2 puts another program in the place of the one that is
// attached, in one step (Linux 5.6).
func changeDevicesV2(dir string, rules []specs.LinuxDeviceCgroup) error {
	group, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(group)
	ids, err := attachedPrograms(group)
	if err != nil {
		return fmt.Errorf("look for the program for device rules: %w", err)
	}
	if len(ids) == 0 {
		return devicesV2(dir, rules)
	}
	if len(ids) > 1 {
		return errors.New("somebody else attached a program for device rules, too; it is left alone")
	}
	prog, err := deviceProgram(rules)
	if err != nil {
		return err
	}
	fd, err := loadProgram(prog)
	if err != nil {
		return fmt.Errorf("load the program for device rules: %w", err)
	}
	defer unix.Close(fd)
	// union bpf_attr for BPF_PROG_GET_FD_BY_ID
	get := struct{ id, next, flags uint32 }{id: ids[0]}
	old, err := bpf(unix.BPF_PROG_GET_FD_BY_ID, unsafe.Pointer(&get), unsafe.Sizeof(get))
	if err != nil {
		return fmt.Errorf("open the program for device rules: %w", err)
	}
	defer unix.Close(old)
	// union bpf_attr for BPF_PROG_ATTACH
	attach := struct{ target, prog, kind, flags, replace uint32 }{
		uint32(group), uint32(fd), unix.BPF_CGROUP_DEVICE, unix.BPF_F_ALLOW_MULTI | unix.BPF_F_REPLACE, uint32(old),
	}
	if _, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attach), unsafe.Sizeof(attach)); err != nil {
		return fmt.Errorf("replace the program for device rules: %w", err)
	}
	return nil
}

// attachedPrograms are the IDs of the group's own programs for devices.
func attachedPrograms(group int) ([]uint32, error) {
	ids := make([]uint32, 8)
	// union bpf_attr for BPF_PROG_QUERY
	attr := struct {
		target, kind, queryFlags, attachFlags uint32
		ids                                   uint64
		count, _                              uint32
	}{target: uint32(group), kind: unix.BPF_CGROUP_DEVICE, ids: uint64(uintptr(unsafe.Pointer(&ids[0]))), count: uint32(len(ids))}
	_, err := bpf(unix.BPF_PROG_QUERY, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return nil, err
	}
	return ids[:attr.count], nil
}
