package seccomp

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const native = specs.ArchARM

var abis = []abi{{specs.ArchARM, unix.AUDIT_ARCH_ARM, tablearm}}
