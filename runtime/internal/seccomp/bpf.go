package seccomp

import (
	"encoding/binary"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/internal/errdef"
)

// An instruction of the kernel's classic BPF.
type instruction struct {
	code   uint16
	jt, jf uint8 // how many instructions to skip
	k      uint32
}

// The few operations that are needed (linux/bpf_common.h).
const (
	opLoad    = 0x20 // A = word k of the call's data
	opAnd     = 0x54 // A &= k
	opJump    = 0x05 // skip k
	opEqual   = 0x15 // A == k
	opAbove   = 0x25 // A > k
	opAtLeast = 0x35 // A >= k
	opReturn  = 0x06
)

// Where things are in struct seccomp_data. All our architectures are little
// endian: the low half of an argument comes first.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

func (i instruction) append(b []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, i.code)
	b = append(b, i.jt, i.jf)
	return binary.NativeEndian.AppendUint32(b, i.k)
}

func ret(action uint32) instruction { return instruction{code: opReturn, k: action} }

// skipUnless skips n instructions unless A is k.
func skipUnless(k uint32, n int) []instruction {
	return []instruction{{code: opEqual, k: k, jt: 1}, {code: opJump, k: uint32(n)}}
}

// search finds the span of the number in A.
func search(spans []span) ([]instruction, error) {
	if len(spans) == 1 {
		return spans[0].verdict.compile()
	}
	mid := len(spans) / 2
	left, err := search(spans[:mid])
	if err != nil {
		return nil, err
	}
	right, err := search(spans[mid:])
	if err != nil {
		return nil, err
	}
	var prog []instruction
	if len(left) <= 255 {
		prog = append(prog, instruction{code: opAtLeast, k: spans[mid].first, jt: uint8(len(left))})
	} else { // too far for a conditional jump
		prog = append(prog, instruction{code: opAtLeast, k: spans[mid].first, jf: 1}, instruction{code: opJump, k: uint32(len(left))})
	}
	return append(append(prog, left...), right...), nil
}

func (v verdict) compile() ([]instruction, error) {
	var prog []instruction
	for _, c := range v.conditional {
		block, err := c.compile()
		if err != nil {
			return nil, err
		}
		prog = append(prog, block...)
	}
	return append(prog, ret(v.otherwise)), nil
}

// Marks for jumps until it is known how far they go.
const (
	toFail = 255
	toPass = 254
)

// compile returns from the filter if all conditions hold, else falls through.
func (c conditional) compile() ([]instruction, error) {
	var prog []instruction
	for _, a := range c.args {
		test, err := compare(a)
		if err != nil {
			return nil, err
		}
		for i := range test {
			test[i].jt, test[i].jf = pass(test[i].jt, i, len(test)), pass(test[i].jf, i, len(test))
		}
		prog = append(prog, test...)
	}
	prog = append(prog, ret(c.action))
	for i := range prog {
		distance := uint8(len(prog) - i - 1) // at most six tests of six instructions
		if prog[i].jt == toFail {
			prog[i].jt = distance
		}
		if prog[i].jf == toFail {
			prog[i].jf = distance
		}
	}
	return prog, nil
}

func pass(jump uint8, at, n int) uint8 {
	if jump == toPass {
		return uint8(n - at - 1)
	}
	return jump
}

// compare tests one 64 bit argument in two halves. It falls through if the
// condition holds.
func compare(a specs.LinuxSeccompArg) ([]instruction, error) {
	if a.Index > 5 {
		return nil, errdef.Invalid.Errorf("seccomp: argument %d: system calls have six", a.Index)
	}
	lo, hi := uint32(a.Value), uint32(a.Value>>32)
	loadLo := instruction{code: opLoad, k: offArgs + 8*uint32(a.Index)}
	loadHi := instruction{code: opLoad, k: loadLo.k + 4}
	switch a.Op {
	case specs.OpEqualTo:
		return []instruction{loadHi, {opEqual, 0, toFail, hi}, loadLo, {opEqual, 0, toFail, lo}}, nil
	case specs.OpNotEqual:
		return []instruction{loadHi, {opEqual, 0, toPass, hi}, loadLo, {opEqual, toFail, 0, lo}}, nil
	case specs.OpMaskedEqual:
		wantLo, wantHi := uint32(a.ValueTwo), uint32(a.ValueTwo>>32)
		return []instruction{
			loadHi, {code: opAnd, k: hi}, {opEqual, 0, toFail, wantHi},
			loadLo, {code: opAnd, k: lo}, {opEqual, 0, toFail, wantLo},
		}, nil
	case specs.OpGreaterThan:
		return []instruction{loadHi, {opAbove, toPass, 0, hi}, {opEqual, 0, toFail, hi}, loadLo, {opAbove, 0, toFail, lo}}, nil
	case specs.OpGreaterEqual:
		return []instruction{loadHi, {opAbove, toPass, 0, hi}, {opEqual, 0, toFail, hi}, loadLo, {opAtLeast, 0, toFail, lo}}, nil
	case specs.OpLessThan:
		return []instruction{loadHi, {opAbove, toFail, 0, hi}, {opEqual, 0, toPass, hi}, loadLo, {opAtLeast, toFail, 0, lo}}, nil
	case specs.OpLessEqual:
		return []instruction{loadHi, {opAbove, toFail, 0, hi}, {opEqual, 0, toPass, hi}, loadLo, {opAbove, toFail, 0, lo}}, nil
	}
	return nil, errdef.Invalid.Errorf("seccomp: unknown operator %q", a.Op)
}
