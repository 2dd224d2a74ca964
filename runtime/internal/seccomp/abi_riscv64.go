package seccomp

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const native = specs.ArchRISCV64

var abis = []abi{{specs.ArchRISCV64, unix.AUDIT_ARCH_RISCV64, tableriscv64}}
