package seccomp

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	profile "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
)

const (
	errnoPerm  = retErrno | uint32(unix.EPERM)
	errnoNosys = retErrno | uint32(unix.ENOSYS)
)

// A call is what the kernel gives a filter.
type call struct {
	arch uint32
	nr   uint32
	args [6]uint64
}

// run executes a filter as the kernel does and counts the instructions.
func run(t testing.TB, filter []byte, c call) (action uint32, steps int) {
	t.Helper()
	data := make([]byte, 64)
	binary.LittleEndian.PutUint32(data[offNumber:], c.nr)
	binary.LittleEndian.PutUint32(data[offArch:], c.arch)
	for i, a := range c.args {
		binary.LittleEndian.PutUint64(data[offArgs+8*i:], a)
	}
	var acc uint32
	for pc := Size; ; pc += Size {
		if pc+Size > len(filter) {
			t.Fatalf("filter ran off its end for %+v", c)
		}
		steps++
		code, jt, jf := binary.NativeEndian.Uint16(filter[pc:]), filter[pc+2], filter[pc+3]
		k := binary.NativeEndian.Uint32(filter[pc+4:])
		jump := func(yes bool) {
			if yes {
				pc += Size * int(jt)
			} else {
				pc += Size * int(jf)
			}
		}
		switch code {
		case opLoad:
			acc = binary.LittleEndian.Uint32(data[k:])
		case opAnd:
			acc &= k
		case opJump:
			pc += Size * int(k)
		case opEqual:
			jump(acc == k)
		case opAbove:
			jump(acc > k)
		case opAtLeast:
			jump(acc >= k)
		case opReturn:
			return k, steps
		default:
			t.Fatalf("unknown instruction %#x", code)
		}
	}
}

func compile(t testing.TB, s *specs.LinuxSeccomp) []byte {
	t.Helper()
	f, err := Compile(s)
	if err != nil {
		t.Fatalf("Compile: %v", err)
	}
	return f
}

func number(t testing.TB, a abi, name string) uint32 {
	t.Helper()
	nr, ok := parseTable(a.table)[name]
	if !ok {
		t.Fatalf("%s has no system call %s", a.arch, name)
	}
	return nr
}

func TestComparisons(t *testing.T) {
	const big = 1<<32 + 5
	tests := []struct {
		op        specs.LinuxSeccompOperator
		value, v2 uint64
		yes, no   []uint64
	}{
		{specs.OpEqualTo, big, 0, []uint64{big}, []uint64{5, 1 << 32, 0}},
		{specs.OpNotEqual, big, 0, []uint64{5, 1 << 32, 0}, []uint64{big}},
		{specs.OpGreaterThan, big, 0, []uint64{big + 1, 2 << 32, 1 << 63}, []uint64{big, 6, 1 << 32, 0}},
		{specs.OpGreaterEqual, big, 0, []uint64{big, big + 1, 2 << 32}, []uint64{big - 1, 6, 0}},
		{specs.OpLessThan, big, 0, []uint64{big - 1, 6, 1<<32 - 1, 0}, []uint64{big, big + 1, 2 << 32}},
		{specs.OpLessEqual, big, 0, []uint64{big, big - 1, 6, 0}, []uint64{big + 1, 2 << 32, 1 << 63}},
		{specs.OpMaskedEqual, 0xf000000f0, 0x300000030, []uint64{0x300000030, 0x30000003f, 0x8300000030}, []uint64{0x30, 0x300000000, 0x700000030}},
	}
	for _, tt := range tests {
		f := compile(t, &specs.LinuxSeccomp{
			DefaultAction: specs.ActErrno,
			Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow,
				Args: []specs.LinuxSeccompArg{{Index: 2, Value: tt.value, ValueTwo: tt.v2, Op: tt.op}}}},
		})
		check := func(arg uint64, want uint32) {
			got, _ := run(t, f, call{abis[0].audit, number(t, abis[0], "read"), [6]uint64{2: arg}})
			if got != want {
				t.Errorf("%s %#x/%#x with %#x = %#x, want %#x", tt.op, tt.value, tt.v2, arg, got, want)
			}
		}
		for _, a := range tt.yes {
			check(a, retAllow)
		}
		for _, a := range tt.no {
			check(a, errnoPerm)
		}
	}
}

func TestRules(t *testing.T) {
	arg := func(i uint, v uint64) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: i, Value: v, Op: specs.OpEqualTo}
	}
	seven := uint(7)
	s := &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno,
		Syscalls: []specs.LinuxSyscall{
			{Names: []string{"read", "write", "no_such_call"}, Action: specs.ActAllow},
			{Names: []string{"socket"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(0, 1), arg(1, 2)}},
			{Names: []string{"socket"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(0, 9)}},
			{Names: []string{"personality"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(0, 3), arg(0, 4)}},
			{Names: []string{"mount"}, Action: specs.ActErrno, ErrnoRet: &seven},
			{Names: []string{"ptrace"}, Action: specs.ActKillProcess},
			{Names: []string{"chroot"}, Action: specs.ActTrap},
			{Names: []string{"chdir"}, Action: specs.ActLog},
		},
	}
	tests := []struct {
		name, call string
		args       [6]uint64
		want       uint32
	}{
		{"allowed", "write", [6]uint64{}, retAllow},
		{"not-mentioned", "open_by_handle_at", [6]uint64{}, errnoPerm},
		{"newer-than-the-profile", "statmount", [6]uint64{}, errnoNosys},
		{"all-arguments-must-match", "socket", [6]uint64{1, 3}, errnoPerm},
		{"both-match", "socket", [6]uint64{1, 2}, retAllow},
		{"rules-are-alternatives", "socket", [6]uint64{9, 3}, retAllow},
		{"conditions-on-one-argument-are-alternatives", "personality", [6]uint64{4}, retAllow},
		{"none-of-the-alternatives", "personality", [6]uint64{5}, errnoPerm},
		{"own-errno", "mount", [6]uint64{}, retErrno | 7},
		{"kill-process", "ptrace", [6]uint64{}, retKillProcess},
		{"trap", "chroot", [6]uint64{}, retTrap},
		{"log", "chdir", [6]uint64{}, retLog},
	}
	// The newest call that the rules know is far above the ones tried here.
	s.Syscalls = append(s.Syscalls, specs.LinuxSyscall{Names: []string{"clone3"}, Action: specs.ActAllow})
	f := compile(t, s)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, _ := run(t, f, call{abis[0].audit, number(t, abis[0], tt.call), tt.args}); got != tt.want {
				t.Errorf("%s%v = %#x, want %#x", tt.call, tt.args, got, tt.want)
			}
		})
	}
	if got, _ := run(t, f, call{arch: 0x1234, nr: 0}); got != retKillThread {
		t.Errorf("a call of an unknown ABI = %#x, want it killed", got)
	}
}

func TestX32IsNoWayAroundADenial(t *testing.T) {
	if native != specs.ArchX86_64 {
		t.Skip("x32 is of amd64")
	}
	f := compile(t, &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"ptrace"}, Action: specs.ActErrno}}})
	if got, _ := run(t, f, call{abis[0].audit, x32Calls + number(t, abis[0], "ptrace"), [6]uint64{}}); got != errnoNosys {
		t.Errorf("ptrace by x32 = %#x, want ENOSYS", got)
	}
	if got, _ := run(t, f, call{abis[0].audit, 9999, [6]uint64{}}); got != retAllow {
		t.Errorf("an unknown call where the default is to allow = %#x, want allowed", got)
	}
}

func dockerProfile(t testing.TB) *specs.LinuxSeccomp {
	t.Helper()
	s, err := profile.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN"}}}, Linux: &specs.Linux{}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// allowed are the calls that the profile allows without conditions.
func allowed(s *specs.LinuxSeccomp) map[string]bool {
	names := map[string]bool{}
	for _, rule := range s.Syscalls {
		for _, name := range rule.Names {
			if len(rule.Args) == 0 && rule.Action == specs.ActAllow {
				names[name] = true
			}
		}
	}
	return names
}

func TestDockersProfile(t *testing.T) {
	s := dockerProfile(t)
	f, allowed := compile(t, s), allowed(s)
	t.Logf("%d instructions", len(f)/Size-1)
	for _, a := range abis {
		total, n := 0, 0
		for name, nr := range parseTable(a.table) {
			got, steps := run(t, f, call{arch: a.audit, nr: nr})
			total, n = total+steps, n+1
			if allowed[name] && got != retAllow {
				t.Errorf("%s %s = %#x, want it allowed", a.arch, name, got)
			}
		}
		if mean := total / n; mean > 20 {
			t.Errorf("%s: a call takes %d instructions in the mean, want at most 20", a.arch, mean)
		}
	}
	for name, want := range map[string]uint32{"read": retAllow, "openat": retAllow, "mount": errnoPerm, "kexec_load": errnoPerm, "clone3": errnoNosys} {
		if got, _ := run(t, f, call{arch: abis[0].audit, nr: number(t, abis[0], name)}); got != want {
			t.Errorf("%s = %#x, want %#x", name, got, want)
		}
	}
	if native == specs.ArchX86_64 {
		got, _ := run(t, f, call{abis[0].audit, number(t, abis[0], "clone"), [6]uint64{unix.CLONE_NEWUSER}})
		if got != errnoPerm {
			t.Errorf("clone of a user namespace = %#x, want EPERM", got)
		}
	}
}

func TestRefusals(t *testing.T) {
	tests := []struct {
		name string
		s    specs.LinuxSeccomp
		kind errdef.Kind
	}{
		{"notify", specs.LinuxSeccomp{DefaultAction: specs.ActNotify}, errdef.Unsupported},
		{"unknown-action", specs.LinuxSeccomp{DefaultAction: "DANCE"}, errdef.Invalid},
		{"unknown-flag", specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"X"}}, errdef.Unsupported},
		{"seventh-argument", specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActKill, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}}}, errdef.Invalid},
		{"unknown-operator", specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActKill, Args: []specs.LinuxSeccompArg{{Op: "LIKE"}}}}}, errdef.Invalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := Compile(&tt.s); !errdef.Is(err, tt.kind) {
				t.Errorf("Compile = %v (%s), want an error of kind %s", err, errdef.Of(err), tt.kind)
			}
		})
	}
}

// Any profile gives a program whose jumps stay inside and whose verdicts are
// the rules'.
func TestRandomProfilesEndWithTheirVerdict(t *testing.T) {
	names := parseTable(abis[0].table)
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 0))
		want := map[uint32]uint32{}
		s := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
		for name, nr := range names {
			if r.IntN(2) == 0 {
				s.Syscalls = append(s.Syscalls, specs.LinuxSyscall{Names: []string{name}, Action: specs.ActAllow})
				want[nr] = retAllow
			}
		}
		f := compile(t, s)
		for _, nr := range names {
			got, _ := run(t, f, call{arch: abis[0].audit, nr: nr})
			if (got == retAllow) != (want[nr] == retAllow) {
				t.Fatalf("seed %d: call %d = %#x, want allowed = %v", seed, nr, got, want[nr] == retAllow)
			}
		}
	}
}

func BenchmarkCompileDockersProfile(b *testing.B) {
	s := dockerProfile(b)
	for b.Loop() {
		compile(b, s)
	}
}
