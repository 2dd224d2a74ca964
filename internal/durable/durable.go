// Package durable changes files so that a power cut leaves the old or the new
// content, never a mixture and never an empty file.
//
// Nobody else renames files that hold state.
package durable

import (
	"fmt"
	"os"
	"path/filepath"
)

// WriteFile replaces the content of path. When it returns nil the new content
// survives a power cut; when it fails, or is interrupted at any instruction,
// path still has its old content, and at most a file named ".tmp-*" is left
// beside it, which RemoveLeftovers removes.
func WriteFile(path string, data []byte, perm os.FileMode) error {
	// Without the sync ext4 may write the rename before the data.
	if err := replace(path, data, perm, (*os.File).Sync); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// ReplaceFile is WriteFile for what means nothing after a power cut: the
// content is the old or the new one only while the machine is up.
func ReplaceFile(path string, data []byte, perm os.FileMode) error {
	return replace(path, data, perm, func(*os.File) error { return nil })
}

func replace(path string, data []byte, perm os.FileMode, sync func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), tmpPrefix+"*")
	if err != nil {
		return err
	}
	err = fill(f, data, perm, sync)
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

const tmpPrefix = ".tmp-"

func fill(f *os.File, data []byte, perm os.FileMode, sync func(*os.File) error) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = sync(f)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// Rename moves a file or directory, whose content the caller has synced, to
// its final name. After it returns nil the move survives a power cut.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(to))
}

// SyncDir makes the names in dir survive a power cut.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// RemoveLeftovers deletes what interrupted writes left in dir. No write may be
// going on there.
func RemoveLeftovers(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, tmpPrefix+"*"))
	if err != nil {
		return err
	}
	for _, p := range left {
		if err := os.Remove(p); err != nil {
			return err
		}
	}
	return nil
}
