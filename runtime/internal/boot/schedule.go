package boot

import (
	"fmt"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// schedule sets how the program is run: execution domain, scheduling policy,
// priority of its input and output.
func schedule(cfg *Config) error {
	if p := cfg.Personality; p != nil {
		domain, ok := map[specs.LinuxPersonalityDomain]uintptr{specs.PerLinux: 0, specs.PerLinux32: 8}[p.Domain]
		if !ok || len(p.Flags) > 0 {
			return fmt.Errorf("unknown personality %q %q", p.Domain, p.Flags)
		}
		if _, _, e := unix.Syscall(unix.SYS_PERSONALITY, domain, 0, 0); e != 0 {
			return os.NewSyscallError("personality", e)
		}
	}
	if s := cfg.Process.Scheduler; s != nil {
		if err := setScheduler(s); err != nil {
			return err
		}
	}
	if p := cfg.Process.IOPriority; p != nil {
		class, ok := ioClasses[p.Class]
		if !ok {
			return fmt.Errorf("unknown I/O priority class %q", p.Class)
		}
		const process, classShift = 1, 13 // linux/ioprio.h
		if _, _, e := unix.Syscall(unix.SYS_IOPRIO_SET, process, 0, class<<classShift|uintptr(p.Priority)); e != 0 {
			return os.NewSyscallError("ioprio_set", e)
		}
	}
	return nil
}

var ioClasses = map[specs.IOPriorityClass]uintptr{specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3}

// From linux/sched.h.
var policies = map[specs.LinuxSchedulerPolicy]uint32{
	specs.SchedOther: 0, specs.SchedFIFO: 1, specs.SchedRR: 2, specs.SchedBatch: 3, specs.SchedISO: 4, specs.SchedIdle: 5, specs.SchedDeadline: 6,
}

var schedulerFlags = map[specs.LinuxSchedulerFlag]uint64{
	specs.SchedFlagResetOnFork: 0x01, specs.SchedFlagReclaim: 0x02, specs.SchedFlagDLOverrun: 0x04, specs.SchedFlagKeepPolicy: 0x08,
	specs.SchedFlagKeepParams: 0x10, specs.SchedFlagUtilClampMin: 0x20, specs.SchedFlagUtilClampMax: 0x40,
}

func setScheduler(s *specs.Scheduler) error {
	policy, ok := policies[s.Policy]
	if !ok {
		return fmt.Errorf("unknown scheduling policy %q", s.Policy)
	}
	a := unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: policy, Nice: s.Nice, Priority: uint32(s.Priority),
		Runtime: s.Runtime, Deadline: s.Deadline, Period: s.Period,
	}
	for _, f := range s.Flags {
		bit, ok := schedulerFlags[f]
		if !ok {
			return fmt.Errorf("unknown scheduling flag %q", f)
		}
		a.Flags |= bit
	}
	if err := unix.SchedSetAttr(0, &a, 0); err != nil {
		return fmt.Errorf("set scheduling policy %s: %w", s.Policy, err)
	}
	return nil
}

// HasAppArmor reports whether the kernel confines by AppArmor.
func HasAppArmor() bool {
	b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(b), "Y")
}

// useAppArmor chooses the profile of the program that is executed next.
func useAppArmor(profile string) error {
	if profile == "" || profile == "unconfined" {
		return nil
	}
	if err := writeThreadAttr("exec " + profile); err != nil {
		return fmt.Errorf("AppArmor profile %s: %w", profile, err)
	}
	return nil
}
