//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// makeInitrd writes the file system that the kernel starts in: the guest
// program and the modules, numbered in the order in which it loads them.
func makeInitrd(ctx context.Context, k kernel, to string) error {
	guest := filepath.Join(dir, "guest")
	if err := goBuild(ctx, "build", guest, "./internal/vmtest/guest"); err != nil {
		return err
	}
	files, err := k.load(modules)
	if err != nil {
		return err
	}
	var a archive
	for _, d := range []string{"dev", "proc", "sys", "root", "modules"} {
		a.add(d, 0o040755, nil)
	}
	if err := a.addFile("init", guest); err != nil {
		return err
	}
	for i, f := range files {
		if err := a.addFile(fmt.Sprintf("modules/%03d-%s", i, filepath.Base(f)), f); err != nil {
			return err
		}
	}
	return os.WriteFile(to, a.bytes(), 0o644)
}

// archive is a cpio archive in the "newc" form, as the kernel reads it
// (Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	buf   bytes.Buffer
	inode int
}

func (a *archive) add(name string, mode int, data []byte) {
	a.inode++
	fmt.Fprintf(&a.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	a.pad()
	a.buf.Write(data)
	a.pad()
}

func (a *archive) pad() { a.buf.Write(make([]byte, -a.buf.Len()&3)) }

func (a *archive) addFile(name, path string) error {
	data, err := os.ReadFile(path)
	if err == nil {
		a.add(name, 0o100755, data)
	}
	return err
}

func (a *archive) bytes() []byte {
	a.add("TRAILER!!!", 0, nil)
	return a.buf.Bytes()
}

func goBuild(ctx context.Context, verb, to string, packages ...string) error {
	args := append([]string{verb}, map[string][]string{"test": {"-c"}}[verb]...)
	cmd := exec.CommandContext(ctx, "go", append(append(args, "-ldflags", "-s -w", "-o", to), packages...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}

// makeDisk writes the root file system: busybox, the programs, the tests.
func makeDisk(ctx context.Context, suites []suite, to string) error {
	root, err := os.MkdirTemp(dir, "root-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	if err := makeRoot(root); err != nil {
		return err
	}
	if err := goBuild(ctx, "build", root+"/programs/", "./cmd/minked", "./cmd/minke-runtime"); err != nil {
		return err
	}
	for _, s := range suites {
		place := filepath.Join(root, "tests", s.Package)
		if err := goBuild(ctx, "test", place+"/test", "./"+s.Package); err != nil {
			return err
		}
		if data := s.Package + "/testdata"; exists(data) {
			if err := os.CopyFS(place+"/testdata", os.DirFS(data)); err != nil {
				return err
			}
		}
	}
	list, err := json.Marshal(suites)
	if err != nil {
		return err
	}
	if err := os.WriteFile(root+"/tests/list", list, 0o644); err != nil {
		return err
	}
	os.Remove(to)
	return command(ctx, "mke2fs", "-q", "-t", "ext4", "-d", root, "-E", "root_owner=0:0", to, "2G")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// makeRoot fills root with what a small Linux has.
func makeRoot(root string) error {
	for _, d := range []string{"bin", "dev", "etc", "proc", "sys", "tmp", "run", "root", "var/tmp", "programs", "tests"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	box, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	data, err := os.ReadFile(box)
	if err != nil {
		return err
	}
	applets, err := exec.Command(box, "--list").Output()
	if err != nil {
		return err
	}
	for _, a := range strings.Fields(string(applets)) {
		if a == "busybox" {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(root, "bin", a)); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"bin/busybox":     string(data),
		"etc/passwd":      "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"etc/group":       "root:x:0:\nnogroup:x:65534:\n",
		"etc/subuid":      "",
		"etc/subgid":      "",
		"etc/hosts":       "127.0.0.1 localhost\n",
		"etc/resolv.conf": "nameserver 127.0.0.1\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o755); err != nil {
			return err
		}
	}
	return nil
}
