package cgroup

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// alwaysAllowed are the devices of every container, and the right to make the
// nodes of others, which gives no access to them.
var alwaysAllowed = []specs.LinuxDeviceCgroup{
	rule("c", -1, -1, "m"), rule("b", -1, -1, "m"),
	rule("c", 1, 3, "rwm"), rule("c", 1, 5, "rwm"), rule("c", 1, 7, "rwm"), rule("c", 1, 8, "rwm"), rule("c", 1, 9, "rwm"),
	rule("c", 5, 0, "rwm"), rule("c", 5, 2, "rwm"), rule("c", 136, -1, "rwm"),
}

func rule(kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
	return specs.LinuxDeviceCgroup{Allow: true, Type: kind, Major: &major, Minor: &minor, Access: access}
}

// setDevices applies the device rules; of two that match the later one wins.
// ChangeDevices does it for a group that has rules already.
func (g *Group) setDevices(r *specs.LinuxResources) error {
	if r == nil || len(r.Devices) == 0 {
		return nil
	}
	rules := append(r.Devices[:len(r.Devices):len(r.Devices)], alwaysAllowed...)
	if dir, ok := g.Paths["devices"]; ok {
		return devicesV1(dir, rules)
	}
	return devicesV2(g.Paths[Unified], rules)
}

func devicesV1(dir string, rules []specs.LinuxDeviceCgroup) error {
	allow, err := openForWriting(dir, "devices.allow")
	if err != nil {
		return err
	}
	defer unix.Close(allow)
	deny, err := openForWriting(dir, "devices.deny")
	if err != nil {
		return err
	}
	defer unix.Close(deny)
	for _, d := range rules {
		fd := deny
		if d.Allow {
			fd = allow
		}
		kind := d.Type
		if kind == "" {
			kind = "a"
		}
		line := fmt.Sprintf("%s %s:%s %s", kind, number(d.Major), number(d.Minor), accessOf(d))
		if _, err := unix.Write(fd, []byte(line)); err != nil {
			return fmt.Errorf("device rule %q: %w", line, err)
		}
	}
	return nil
}

func number(n *int64) string {
	if n == nil || *n < 0 {
		return "*"
	}
	return strconv.FormatInt(*n, 10)
}

func accessOf(d specs.LinuxDeviceCgroup) string {
	if d.Access == "" {
		return "rwm"
	}
	return d.Access
}

// An instruction of eBPF, as the kernel has it.
type instruction struct {
	code uint8
	regs uint8 // destination, source in the upper half
	off  int16
	imm  int32
}

// The few operations that are needed.
const (
	opLoad32  = 0x61 // dst = *(u32 *)(src + off)
	opMov     = 0xbf // dst = src
	opMovImm  = 0xb7
	opAndImm  = 0x57
	opRshImm  = 0x77
	opJneImm  = 0x55 // if dst != imm, skip off
	opJeqImm  = 0x15
	opExit    = 0x95
	regReturn = 0
	regCtx    = 1
	regKind   = 2
	regAccess = 3
	regMajor  = 4
	regMinor  = 5
	regTemp   = 6
)

// deviceProgram decides as the rules do: the last that matches first. The
// kernel gives it kind and access in one word, then major and minor.
func deviceProgram(rules []specs.LinuxDeviceCgroup) ([]instruction, error) {
	prog := []instruction{
		{code: opLoad32, regs: regKind | regCtx<<4},
		{code: opMov, regs: regAccess | regKind<<4},
		{code: opAndImm, regs: regKind, imm: 0xffff},
		{code: opRshImm, regs: regAccess, imm: 16},
		{code: opLoad32, regs: regMajor | regCtx<<4, off: 4},
		{code: opLoad32, regs: regMinor | regCtx<<4, off: 8},
	}
	for i := len(rules) - 1; i >= 0; i-- {
		block, err := ruleBlock(rules[i])
		if err != nil {
			return nil, err
		}
		prog = append(prog, block...)
	}
	return append(prog, instruction{code: opMovImm, regs: regReturn, imm: 0}, instruction{code: opExit}), nil
}

// ruleBlock returns from the program if the rule matches, else falls through.
func ruleBlock(d specs.LinuxDeviceCgroup) ([]instruction, error) {
	bits, err := accessBits(accessOf(d))
	if err != nil {
		return nil, err
	}
	var b []instruction
	switch d.Type {
	case "b":
		b = append(b, instruction{code: opJneImm, regs: regKind, imm: unix.BPF_DEVCG_DEV_BLOCK})
	case "c", "u":
		b = append(b, instruction{code: opJneImm, regs: regKind, imm: unix.BPF_DEVCG_DEV_CHAR})
	case "a", "":
	default:
		return nil, fmt.Errorf("unknown device type %q in a cgroup rule", d.Type)
	}
	// An allowing rule must cover all that is wanted; a denying one some of it.
	b = append(b, instruction{code: opMov, regs: regTemp | regAccess<<4})
	if d.Allow {
		b = append(b, instruction{code: opAndImm, regs: regTemp, imm: ^bits & 7}, instruction{code: opJneImm, regs: regTemp})
	} else {
		b = append(b, instruction{code: opAndImm, regs: regTemp, imm: bits}, instruction{code: opJeqImm, regs: regTemp})
	}
	if d.Major != nil && *d.Major >= 0 {
		b = append(b, instruction{code: opJneImm, regs: regMajor, imm: int32(*d.Major)})
	}
	if d.Minor != nil && *d.Minor >= 0 {
		b = append(b, instruction{code: opJneImm, regs: regMinor, imm: int32(*d.Minor)})
	}
	allow := int32(0)
	if d.Allow {
		allow = 1
	}
	b = append(b, instruction{code: opMovImm, regs: regReturn, imm: allow}, instruction{code: opExit})
	for i := range b {
		if b[i].code == opJneImm || b[i].code == opJeqImm {
			b[i].off = int16(len(b) - i - 1)
		}
	}
	return b, nil
}

func accessBits(access string) (int32, error) {
	bits := int32(0)
	for _, c := range access {
		i := strings.IndexRune("mrw", c) // in the order of the kernel's bits
		if i < 0 {
			return 0, fmt.Errorf("unknown device access %q in a cgroup rule", access)
		}
		bits |= 1 << i
	}
	return bits, nil
}

// devicesV2 attaches a program to the group. It lives as long as the group.
func devicesV2(dir string, rules []specs.LinuxDeviceCgroup) error {
	prog, err := deviceProgram(rules)
	if err != nil {
		return err
	}
	group, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(group)
	fd, err := loadProgram(prog)
	if err != nil {
		return fmt.Errorf("load the program for device rules: %w", err)
	}
	defer unix.Close(fd)
	// union bpf_attr for BPF_PROG_ATTACH
	attr := struct{ target, prog, kind, flags uint32 }{uint32(group), uint32(fd), unix.BPF_CGROUP_DEVICE, unix.BPF_F_ALLOW_MULTI}
	if _, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return fmt.Errorf("attach the program for device rules: %w", err)
	}
	return nil
}

// license is asked for by the kernel; not being the GPL it bars some helper
// functions, of which there are none here.
var license = []byte("Apache-2.0\x00")

func loadProgram(prog []instruction) (int, error) {
	// union bpf_attr for BPF_PROG_LOAD, up to what is needed
	attr := struct {
		kind, count    uint32
		insns, license uint64
		logLevel, size uint32
		logBuf         uint64
		version, flags uint32
	}{
		kind: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: uint32(len(prog)),
		insns: uint64(uintptr(unsafe.Pointer(&prog[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0]))),
	}
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(prog)
	return fd, err
}

func bpf(cmd uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	for range 5 { // EAGAIN: the verifier was interrupted by a signal
		fd, _, e := unix.Syscall(unix.SYS_BPF, cmd, uintptr(attr), size)
		if e == 0 {
			return int(fd), nil
		}
		if !errors.Is(e, unix.EAGAIN) {
			return -1, e
		}
	}
	return -1, unix.EAGAIN
}
