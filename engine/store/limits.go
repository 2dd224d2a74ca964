package store

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
)

// What a layer may take, however it was compressed: an archive of kilobytes
// can unpack to more than any disk has, or to more files than memory can list.
const (
	// maxEntries is far above what images have (a desktop has 300,000 files).
	maxEntries = 2 << 20

	// maxDisks is how many times the disk's size the content of a layer may
	// have: more than once, for what is there already or is a hole takes
	// nothing.
	maxDisks = 4

	// Adding a layer ends before the disk is full: a fiftieth of it, or 64 MB
	// of a big one, stays for containers, logs and our own records.
	reservePart = 50
	maxReserve  = 64 << 20
)

// room counts n bytes that are about to be written and sees now and then that
// the disk keeps its reserve.
func (a *adding) room(n int64) error {
	if a.fresh += n; a.fresh < writeback && a.limit != 0 {
		return nil
	}
	a.fresh = 0
	total, free, err := a.s.space()
	if err != nil {
		return err
	}
	if a.limit == 0 {
		a.limit = a.s.maxLayer
		if a.limit == 0 {
			a.limit = maxDisks * total
		}
		a.most = a.limit
	}
	if free < reserve(total) {
		return fmt.Errorf("%w: only %d MB are free below %s; remove images (docker image prune) or volumes", unix.ENOSPC, free>>20, a.s.root)
	}
	return nil
}

// Room reports unix.ENOSPC if the disk cannot take n bytes and keep its
// reserve.
func (s *Store) Room(n int64) error {
	total, free, err := s.space()
	if err != nil {
		return err
	}
	if free-reserve(total) < n {
		return fmt.Errorf("%w: at least %d MB more are needed, and %d MB are free below %s, of which %d MB stay in reserve; remove images (docker image prune) or volumes",
			unix.ENOSPC, (n+1<<20-1)>>20, free>>20, s.root, reserve(total)>>20)
	}
	return nil
}

func reserve(total int64) int64 { return min(total/reservePart, maxReserve) }

// space is the disk's size and what of it is free, in bytes.
func (s *Store) space() (total, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(s.dir.Fd()), &st); err != nil {
		return 0, 0, os.NewSyscallError("fstatfs", err)
	}
	block := int64(st.Bsize)
	return int64(st.Blocks) * block, int64(st.Bavail) * block, nil
}

// allow takes n bytes from what the layer may still grow to.
func (a *adding) allow(n int64) error {
	if n > a.limit-1 {
		return errdef.Invalid.Errorf("the layer unpacks to more than the %d bytes that are allowed", a.most)
	}
	a.limit -= n
	return nil
}
