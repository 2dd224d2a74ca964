//go:build linux

// Package powercut is a disk for tests that remembers what was written to it
// and when it was told to flush, and can be had again as it would be if power
// had been cut at any moment.
//
//	Disk   a loop device over a file whose writes and flushes are recorded
//	Log    the record: what a disk was told, in order
//	Cut    a moment, and the fate of what was not flushed by then
//
// A disk promises only what was written before its last flush. Of what came
// later it may have kept all, nothing, or any of it in any order, and parts of
// single writes: sectors of 512 bytes are whole, nothing larger is.
//
// The file is a FUSE file of this process and the loop device reads and writes
// it directly, so the kernel's flushes arrive here. Whoever uses the disk must
// be another process: this one must never wait for a disk that waits for it.
// Neither mount is in the host's table; both end with their descriptors.
//
// No program of minke links this package.
package powercut

import (
	"context"
	"fmt"
	"os"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A Disk records. Close it when its users have gone.
type Disk struct {
	Path string // of the block device

	loop   *Loop
	file   *recorded
	server *fuse.Server
	mount  int
}

// NewDisk makes a disk of zeros. Dir is for its device node.
func NewDisk(dir string, size int64) (_ *Disk, err error) {
	d := &Disk{file: &recorded{data: make([]byte, size)}, mount: -1}
	defer func() {
		if err != nil {
			d.Close()
			err = fmt.Errorf("recording disk: %w", err)
		}
	}()
	if err := d.serve(); err != nil {
		return nil, err
	}
	fd, err := unix.Openat(d.mount, "disk", unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("open", err)
	}
	defer unix.Close(fd)
	if d.loop, err = attach(dir, fd, unix.LO_FLAGS_DIRECT_IO); err != nil {
		return nil, err
	}
	d.Path = d.loop.Path
	if !d.loop.direct() {
		return nil, fmt.Errorf("the loop device does not do direct I/O here: flushes would not be seen")
	}
	return d, nil
}

// serve mounts the file system without giving it a path.
func (d *Disk) serve() error {
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/dev/fuse", Err: err}
	}
	d.mount, err = Mount("fuse", map[string]string{
		"source": "powercut", "fd": fmt.Sprint(dev), "rootmode": "40000", "user_id": "0", "group_id": "0",
	}, 0)
	if err != nil {
		unix.Close(dev)
		return err
	}
	raw := fs.NewNodeFS(&directory{file: d.file}, &fs.Options{MountOptions: fuse.MountOptions{MaxWrite: 1 << 20, DisableXAttrs: true}})
	d.server, err = fuse.NewServer(raw, fmt.Sprintf("/dev/fd/%d", dev), &fuse.MountOptions{MaxWrite: 1 << 20, DisableXAttrs: true})
	if err != nil {
		unix.Close(dev)
		return err
	}
	go d.server.Serve()
	return d.server.WaitMount()
}

// Log gives the record so far. The disk goes on.
func (d *Disk) Log() Log {
	d.file.mu.Lock()
	defer d.file.mu.Unlock()
	return Log{size: int64(len(d.file.data)), events: d.file.events[:len(d.file.events):len(d.file.events)]}
}

// Now is a moment: how much has been recorded.
func (d *Disk) Now() int {
	d.file.mu.Lock()
	defer d.file.mu.Unlock()
	return len(d.file.events)
}

// Close takes the disk away.
func (d *Disk) Close() error {
	if d.loop != nil {
		d.loop.Close()
	}
	if d.mount >= 0 {
		unix.Close(d.mount)
	}
	if d.server != nil {
		d.server.Wait()
	}
	return nil
}

// directory is the root, with one file.
type directory struct {
	fs.Inode
	file *recorded
}

func (d *directory) OnAdd(ctx context.Context) {
	d.AddChild("disk", d.NewPersistentInode(ctx, d.file, fs.StableAttr{Mode: syscall.S_IFREG, Ino: 2}), false)
}

// recorded is the file that the disk is.
type recorded struct {
	fs.Inode

	mu     sync.Mutex
	data   []byte
	events []event
}

func (f *recorded) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size, out.Nlink = syscall.S_IFREG|0o600, uint64(len(f.data)), 1
	return 0
}

func (f *recorded) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (f *recorded) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fuse.ReadResultData(dest[:copy(dest, f.data[min(off, int64(len(f.data))):])]), 0
}

func (f *recorded) Write(_ context.Context, _ fs.FileHandle, p []byte, off int64) (uint32, syscall.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if off+int64(len(p)) > int64(len(f.data)) {
		return 0, syscall.ENOSPC
	}
	n := copy(f.data[off:], p)
	f.events = append(f.events, event{off: off, data: append([]byte(nil), p...)})
	return uint32(n), 0
}

// Fsync is how a flush arrives. All writes that the kernel knows to be done
// were recorded before.
func (f *recorded) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, event{flush: true})
	return 0
}
