package seccomp

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const native = specs.ArchAARCH64

var abis = []abi{
	{specs.ArchAARCH64, unix.AUDIT_ARCH_AARCH64, tablearm64},
	{specs.ArchARM, unix.AUDIT_ARCH_ARM, tablearm},
}
