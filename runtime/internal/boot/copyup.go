package boot

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// copyUp fills the new tmpfs with what the image has below it (option
// tmpcopyup), by os.Root, for the image may have links that lead elsewhere.
// Extended attributes and what is neither file, directory nor link stay behind.
func copyUp(tmpfs int, from *os.File) error {
	src, err := os.OpenRoot(fdPath(from))
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenRoot(fmt.Sprintf("/proc/thread-self/fd/%d", tmpfs))
	if err != nil {
		return err
	}
	defer dst.Close()
	return fs.WalkDir(src.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch info.Mode().Type() {
		case fs.ModeDir:
			err = dst.Mkdir(name, 0o700)
		case fs.ModeSymlink:
			var to string
			if to, err = src.Readlink(name); err == nil {
				err = dst.Symlink(to, name)
			}
		case 0:
			err = copyFile(src, dst, name)
		default:
			return nil
		}
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		if err := dst.Lchown(name, int(st.Uid), int(st.Gid)); err != nil || info.Mode().Type() == fs.ModeSymlink {
			return err
		}
		return dst.Chmod(name, info.Mode())
	})
}

func copyFile(src, dst *os.Root, name string) error {
	in, err := src.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := dst.Create(name)
	if err != nil {
		return err
	}
	defer out.Close()
	_, err = io.Copy(out, in)
	return err
}
