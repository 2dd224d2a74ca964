// Package seccomp compiles the filter of an OCI configuration to the kernel's
// BPF.
//
// A filter runs at every system call of a container, so it is a binary search
// over ranges of system call numbers that are treated alike: some eight
// comparisons with Docker's default profile, where a chain takes hundreds.
// Within a call, rules with conditions on arguments come first, in the order
// of the profile, then one without, then the default action.
//
// Two things go beyond the profile, as in runc: calls newer than any the
// profile knows fail with ENOSYS, so that a C library falls back to older
// ones; and calls of an ABI that the profile does not list are killed. The x32
// ABI is not served, its calls fail with ENOSYS. System calls that this
// architecture does not have are skipped. SCMP_ACT_NOTIFY is refused.
package seccomp

import (
	"encoding/binary"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
)

// Return values of a filter (linux/seccomp.h).
const (
	retKillProcess = 0x80000000
	retKillThread  = 0x00000000
	retTrap        = 0x00030000
	retErrno       = 0x00050000
	retTrace       = 0x7ff00000
	retLog         = 0x7ffc0000
	retAllow       = 0x7fff0000
)

// An abi is one way of system calls that this processor understands.
type abi struct {
	arch  specs.Arch
	audit uint32
	table string // lines of name and number
}

// Size is the length of an instruction, and of the header.
const Size = 8

// Compile returns the filter in the form that package boot loads: a header
// whose last four bytes are the flags for seccomp(2), then the instructions.
func Compile(s *specs.LinuxSeccomp) ([]byte, error) {
	def, err := action(s.DefaultAction, s.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	flags, err := flagBits(s.Flags)
	if err != nil {
		return nil, err
	}
	prog := []instruction{{code: opLoad, k: offArch}}
	for _, a := range abis {
		if a.arch != native && !slices.Contains(s.Architectures, a.arch) {
			continue
		}
		section, err := compileABI(s, a, def)
		if err != nil {
			return nil, err
		}
		prog = append(prog, skipUnless(a.audit, len(section))...)
		prog = append(prog, section...)
	}
	prog = append(prog, ret(retKillThread))
	if len(prog) > unix.BPF_MAXINSNS {
		return nil, errdef.Invalid.Errorf("seccomp: the filter has %d instructions, the kernel takes %d", len(prog), unix.BPF_MAXINSNS)
	}
	out := binary.NativeEndian.AppendUint32(make([]byte, 4), flags)
	for _, i := range prog {
		out = i.append(out)
	}
	return out, nil
}

func action(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	value := uint32(unix.EPERM)
	if errno != nil {
		value = uint32(*errno) & 0xffff
	}
	switch a {
	case specs.ActAllow:
		return retAllow, nil
	case specs.ActErrno:
		return retErrno | value, nil
	case specs.ActKill, specs.ActKillThread:
		return retKillThread, nil
	case specs.ActKillProcess:
		return retKillProcess, nil
	case specs.ActTrap:
		return retTrap, nil
	case specs.ActLog:
		return retLog, nil
	case specs.ActTrace:
		return retTrace | value, nil
	case specs.ActNotify:
		return 0, errdef.Unsupported.Errorf("seccomp: action %s needs an agent, which this runtime does not serve; take it out of the profile", a)
	}
	return 0, errdef.Invalid.Errorf("seccomp: unknown action %q", a)
}

func flagBits(flags []specs.LinuxSeccompFlag) (uint32, error) {
	if flags == nil {
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil
	}
	bits := uint32(0)
	for _, f := range flags {
		switch f {
		case specs.LinuxSeccompFlagLog:
			bits |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			bits |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case "SECCOMP_FILTER_FLAG_TSYNC": // one thread remains after the exec anyway
		default:
			return 0, errdef.Unsupported.Errorf("seccomp: flag %s is not supported", f)
		}
	}
	return bits, nil
}

// A verdict is what happens to one system call.
type verdict struct {
	conditional []conditional
	otherwise   uint32
	closed      bool // otherwise is a rule's, not the default
}

// conditional is an action taken if all conditions hold.
type conditional struct {
	args   []specs.LinuxSeccompArg
	action uint32
}

// A span is a run of system call numbers with the same verdict.
type span struct {
	first   uint32
	verdict verdict
}

func compileABI(s *specs.LinuxSeccomp, a abi, def uint32) ([]instruction, error) {
	verdicts, err := verdictsOf(s, a, def)
	if err != nil {
		return nil, err
	}
	spans := spansOf(verdicts, def)
	if a.audit == unix.AUDIT_ARCH_X86_64 {
		// The x32 ABI shares the number; it must not be a way around rules.
		spans = append(spans, span{x32Calls, verdict{otherwise: retErrno | uint32(unix.ENOSYS)}})
	}
	tree, err := search(spans)
	if err != nil {
		return nil, err
	}
	return append([]instruction{{code: opLoad, k: offNumber}}, tree...), nil
}

func verdictsOf(s *specs.LinuxSeccomp, a abi, def uint32) (map[uint32]verdict, error) {
	numbers := parseTable(a.table)
	verdicts := map[uint32]verdict{}
	for _, call := range s.Syscalls {
		act, err := action(call.Action, call.ErrnoRet)
		if err != nil {
			return nil, err
		}
		for _, name := range call.Names {
			if nr, ok := numbers[name]; ok && act != def {
				v, ok := verdicts[nr]
				if !ok {
					v.otherwise = def
				}
				verdicts[nr] = v.with(call.Args, act)
			}
		}
	}
	return verdicts, nil
}

func (v verdict) with(args []specs.LinuxSeccompArg, act uint32) verdict {
	switch {
	case len(args) > 0 && repeats(args):
		// Several conditions on one argument are alternatives, by tradition.
		for _, a := range args {
			v.conditional = append(v.conditional, conditional{[]specs.LinuxSeccompArg{a}, act})
		}
	case len(args) > 0:
		v.conditional = append(v.conditional, conditional{args, act})
	case !v.closed:
		v.otherwise, v.closed = act, true
	}
	return v
}

func repeats(args []specs.LinuxSeccompArg) bool {
	seen := map[uint]bool{}
	for _, a := range args {
		if seen[a.Index] {
			return true
		}
		seen[a.Index] = true
	}
	return false
}

// x32Calls is where the numbers of the x32 ABI begin.
const x32Calls = 0x40000000

// privateCalls is where ARM has calls of its own, far above the others.
const privateCalls = 0xf0000

// spansOf covers all numbers from zero on.
func spansOf(verdicts map[uint32]verdict, def uint32) []span {
	numbers := make([]uint32, 0, len(verdicts))
	newest := uint32(0)
	for nr := range verdicts {
		numbers = append(numbers, nr)
		if nr < privateCalls {
			newest = max(newest, nr)
		}
	}
	slices.Sort(numbers)
	unknown := def
	if def != retAllow && def != retLog && len(numbers) > 0 {
		unknown = retErrno | uint32(unix.ENOSYS)
	}
	gap := func(first uint32) uint32 {
		if first > newest {
			return unknown
		}
		return def
	}
	spans := []span{{0, verdict{otherwise: gap(0)}}}
	if len(numbers) > 0 {
		spans[0].verdict.otherwise = def
	}
	add := func(first uint32, v verdict) {
		last := &spans[len(spans)-1]
		switch {
		case last.first == first:
			last.verdict = v
		case len(v.conditional) > 0 || len(last.verdict.conditional) > 0 || v.otherwise != last.verdict.otherwise:
			spans = append(spans, span{first, v})
		}
	}
	for _, nr := range numbers {
		add(nr, verdicts[nr])
		add(nr+1, verdict{otherwise: gap(nr + 1)})
	}
	return spans
}

func parseTable(table string) map[string]uint32 {
	numbers := map[string]uint32{}
	for line := range strings.Lines(table) {
		name, number, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseUint(number, 10, 32); err == nil {
			numbers[name] = uint32(n)
		}
	}
	return numbers
}
