package store

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

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

// batchTime is the longest that new objects wait to be begun with, though few.
// ext4 commits every 5 s, and should have no object in two commits.
const batchTime = time.Second

// wrote notes a new object of n bytes. Now and then the kernel is told to write
// the new ones, and those that it was told of before move to their place.
func (a *adding) wrote(object string, n int64) error {
	a.batch = append(a.batch, object)
	if a.waiting += n; a.waiting < writeback && time.Since(a.begun) < batchTime {
		return nil
	}
	if err := a.begin(); err != nil {
		return err
	}
	if a.s.ordered {
		if err := a.adopt(a.writing); err != nil {
			return err
		}
	}
	a.writing, a.batch = a.batch, nil
	return nil
}

// begin has the kernel begin to write the batch.
func (a *adding) begin() error {
	for _, name := range a.batch {
		if err := syncRange(a.objectDir()+"/"+name, unix.SYNC_FILE_RANGE_WRITE); err != nil {
			return err
		}
	}
	a.begun, a.waiting = time.Now(), 0
	return nil
}

const wholeRange = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER

// adopt waits for the bytes of objects on a file system that keeps order, and
// moves them to their place, where they are ours to remove until somebody else
// finds them.
func (a *adding) adopt(names []string) error {
	for _, name := range names {
		if err := syncRange(a.objectDir()+"/"+name, wholeRange); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := a.s.move(a.objectDir(), name, true); err != nil {
			return err
		}
		a.objects[name] = false
		a.moved = append(a.moved, name)
	}
	return nil
}

// place moves the layer's new objects to their place, each when its bytes are
// on the disk. Where the file system keeps order, their names last when the
// layer's does.
func (a *adding) place() error {
	if !a.s.ordered {
		if err := unix.Syncfs(int(a.s.dir.Fd())); err != nil {
			return os.NewSyscallError("syncfs", err)
		}
		dirs, err := a.s.adopt(a.objectDir(), a.objects)
		if err != nil {
			return err
		}
		return a.s.syncNames(dirs)
	}
	if err := a.begin(); err != nil {
		return err
	}
	if err := a.adopt(append(a.writing, a.batch...)); err != nil {
		return err
	}
	return syncRange(a.dir+"/toc", wholeRange)
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
		if err := durable.SyncDir(s.objectDir(dir)); err != nil {
			return err
		}
	}
	return nil
}
