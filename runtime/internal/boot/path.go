package boot

import (
	"errors"
	"os"
	"path"
	"strings"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"golang.org/x/sys/unix"
)

// openIn opens name below root for use by descriptor (O_PATH). Links are
// followed within root. This is the kernel's own safe resolution, which
// pathrs-lite would use, too, after some checks for kernels that lack it.
func openIn(root *os.File, name string) (*os.File, error) {
	return openat2(root, name, unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

func openat2(root *os.File, name string, how unix.OpenHow) (*os.File, error) {
	for range 64 {
		fd, err := unix.Openat2(int(root.Fd()), name, &how)
		if err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
		// EAGAIN: something was renamed on the way, so ".." was not safe.
		if err != unix.EAGAIN && err != unix.EINTR {
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
	}
	return nil, &os.PathError{Op: "open", Path: name, Err: unix.EAGAIN}
}

// openPlain opens the directory name below root and makes it if it is missing;
// a link anywhere on the way is an error.
func openPlain(root *os.File, name string) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS,
	}
	f, err := openat2(root, name, how)
	if !errors.Is(err, unix.ENOENT) {
		return f, err
	}
	made, err := makeDir(root, name)
	if err != nil {
		return nil, err
	}
	made.Close()
	return openat2(root, name, how)
}

// makeDir opens the directory name below root and makes what is missing. Mostly
// that is nothing, or the last part, for which the kernel's resolution is
// enough; pathrs-lite does the rest.
func makeDir(root *os.File, name string) (*os.File, error) {
	if f, err := openIn(root, name); err == nil {
		return f, nil
	}
	if f, err := makeLast(root, path.Clean("/"+name)); !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	return pathrs.MkdirAllHandle(root, strings.TrimLeft(name, "/"), 0o755)
}

// makeLast makes a directory in one that exists.
func makeLast(root *os.File, name string) (*os.File, error) {
	dir, err := openIn(root, path.Dir(name))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	base := path.Base(name)
	if err := unix.Mkdirat(int(dir.Fd()), base, 0o755); err != nil && err != unix.EEXIST {
		return nil, &os.PathError{Op: "make directory", Path: name, Err: err}
	}
	return openat2(dir, base, unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
}

// makeFile makes the empty file name below root, for something to be mounted
// over it.
func makeFile(root *os.File, name string) (*os.File, error) {
	dir, err := makeDir(root, path.Dir(path.Clean("/"+name)))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	flags := unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_RDONLY
	fd, err := unix.Openat(int(dir.Fd()), path.Base(name), flags, 0o755)
	if err != nil {
		return nil, &os.PathError{Op: "create", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}
