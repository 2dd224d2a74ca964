//go:build unix

package lock

import (
	"io/fs"
	"syscall"
)

func ownedBy(st fs.FileInfo, uid uint32) bool {
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && sys.Uid == uid
}
