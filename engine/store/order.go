package store

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/durable"
)

// Bytes must be on the disk before a name leads to them. Any file system does
// that when told to sync everything in between, but each such sync has it write
// its tables, too, and the next change writes the same tables again. ext4 with
// a journal and xfs need no sync in between: they make changes last in the
// order they were made, and a file's new size and blocks are such a change,
// made before a wait for the file's bytes returns. So there bytes are waited
// for, file by file, and all changes of a layer become one.

// inOrder reports whether the file system of dir is known to be such a one.
func inOrder(dir *os.File) bool {
	var st unix.Statfs_t
	if unix.Fstatfs(int(dir.Fd()), &st) != nil {
		return false
	}
	return st.Type == unix.XFS_SUPER_MAGIC || st.Type == unix.EXT4_SUPER_MAGIC && hasJournal(dir)
}

// hasJournal asks the ext4 driver; what it does not know (ext2) has none.
func hasJournal(dir *os.File) bool {
	var st unix.Stat_t
	if unix.Fstat(int(dir.Fd()), &st) != nil {
		return false
	}
	device, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return false
	}
	thread, err := os.ReadFile("/sys/fs/ext4/" + filepath.Base(device) + "/journal_task")
	return err == nil && strings.TrimSpace(string(thread)) != "<none>"
}

// wrote notes a new object of n bytes and, now and then, has the kernel begin
// to write what is new.
func (a *adding) wrote(object string, n int64) error {
	a.staged = append(a.staged, object)
	if a.waiting += n; a.waiting < writeback {
		return nil
	}
	return a.begin()
}

func (a *adding) begin() error {
	for _, name := range a.staged[a.begun:] {
		if err := syncRange(a.objectDir()+"/"+name, unix.SYNC_FILE_RANGE_WRITE); err != nil {
			return err
		}
	}
	a.begun, a.waiting = len(a.staged), 0
	return nil
}

// sync returns when the layer's bytes are on the disk as far as it needs before
// its files get their names.
func (a *adding) sync() error {
	if !a.s.ordered {
		return os.NewSyscallError("syncfs", unix.Syncfs(int(a.s.dir.Fd())))
	}
	if err := a.begin(); err != nil {
		return err
	}
	const done = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	for _, name := range a.staged {
		if err := syncRange(a.objectDir()+"/"+name, done); err != nil {
			return err
		}
	}
	return syncRange(a.dir+"/toc", done)
}

// syncRange has the kernel write a file's bytes, which makes no change last.
func syncRange(path string, flags int) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.SyncFileRange(int(f.Fd()), 0, 0, flags); err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

// syncNames makes names that adopt has given survive a power cut.
func (s *Store) syncNames(dirs map[string]bool) error {
	for dir := range dirs {
		if err := durable.SyncDir(s.path("files", dir)); err != nil {
			return err
		}
	}
	return nil
}
