package seccomp

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const native = specs.ArchX86

var abis = []abi{{specs.ArchX86, unix.AUDIT_ARCH_I386, table386}}
