package seccomp

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const native = specs.ArchX86_64

var abis = []abi{
	{specs.ArchX86_64, unix.AUDIT_ARCH_X86_64, tableamd64},
	{specs.ArchX86, unix.AUDIT_ARCH_I386, table386},
}
