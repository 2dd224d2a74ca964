//go:build linux

// Command guest is process 1 of the virtual machine that internal/vmtest
// boots: it loads the kernel's modules, enters the disk, mounts what a system
// has mounted, runs the tests and switches the machine off.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	err := live()
	if err != nil {
		fmt.Println("guest:", err) // on the console, which vmtest shows
	}
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func live() error {
	if err := enterDisk(); err != nil {
		return err
	}
	if err := mountAll(systemMounts); err != nil {
		return err
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	os.Setenv("PATH", "/bin")
	os.Setenv("HOME", "/root")
	os.Setenv("MINKE_TEST_PROGRAMS", "/programs")
	if _, err := runIn("/", os.Stdout, "/bin/ip", "link", "set", "lo", "up"); err != nil {
		return err
	}
	return runTests(port)
}

// openPort opens the way out for results, which the driver makes in its time.
func openPort() (*os.File, error) {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if ports, _ := filepath.Glob("/dev/vport*"); len(ports) > 0 {
			return os.OpenFile(ports[0], os.O_WRONLY, 0)
		} else if time.Now().After(deadline) {
			return nil, errors.New("there is no port for the results")
		}
	}
}

// A mount is source, target, type, data.
type mount [4]string

var bootMounts = []mount{
	{"dev", "/dev", "devtmpfs", ""},
	{"proc", "/proc", "proc", ""},
	{"sys", "/sys", "sysfs", ""},
}

var systemMounts = []mount{
	{"pts", "/dev/pts", "devpts", "newinstance,ptmxmode=0666,mode=0620,gid=5"},
	{"shm", "/dev/shm", "tmpfs", "mode=1777"},
	{"mqueue", "/dev/mqueue", "mqueue", ""},
	{"run", "/run", "tmpfs", "mode=755"},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", ""},
	{"security", "/sys/kernel/security", "securityfs", ""},
}

func mountAll(list []mount) error {
	for _, m := range list {
		os.MkdirAll(m[1], 0o755) // in file systems of the kernel it is there
		if err := unix.Mount(m[0], m[1], m[2], 0, m[3]); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m[2], m[1], err)
		}
	}
	return nil
}

// enterDisk leaves the initial file system, in which pivot_root does not work,
// for the disk.
func enterDisk() error {
	if err := mountAll(bootMounts); err != nil {
		return err
	}
	files, err := filepath.Glob("/modules/*") // sorted
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := load(f); err != nil {
			return fmt.Errorf("load %s: %w", f, err)
		}
	}
	const disk = "/dev/vda"
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Mount(disk, "/root", "ext4", 0, "")
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("mount %s: %w", disk, err)
		}
	}
	for _, m := range bootMounts {
		if err := unix.Mount(m[1], "/root"+m[1], "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", m[1], err)
		}
	}
	if err := unix.Chdir("/root"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
		return err
	}
	return nil
}

// runTests runs what /tests/list says; internal/vmtest knows the marks.
func runTests(out *os.File) error {
	data, err := os.ReadFile("/tests/list")
	if err != nil {
		return err
	}
	var suites []struct{ Package, Run, Skip string }
	if err := json.Unmarshal(data, &suites); err != nil {
		return err
	}
	for _, s := range suites {
		fmt.Fprintf(out, "@@begin %s\n", s.Package)
		begin := time.Now()
		place := "/tests/" + s.Package
		code, err := runIn(place, out, place+"/test", "-test.v=test2json", "-test.timeout=10m", "-test.run="+s.Run, "-test.skip="+s.Skip)
		if err != nil {
			fmt.Fprintln(out, err)
			code = 1
		}
		fmt.Fprintf(out, "\n@@end %d %.1f\n", code, time.Since(begin).Seconds())
	}
	fmt.Fprintln(out, "@@done")
	return nil
}

// runIn runs a program to its end, and collects whatever else ends meanwhile,
// as process 1 must.
func runIn(dir string, out *os.File, args ...string) (code int, err error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	pid, err := syscall.ForkExec(args[0], args, &syscall.ProcAttr{
		Dir: dir, Env: os.Environ(), Files: []uintptr{null.Fd(), out.Fd(), out.Fd()},
	})
	if err != nil {
		return 0, fmt.Errorf("%s: %w", args[0], err)
	}
	for {
		var status syscall.WaitStatus
		ended, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR || err == nil && ended != pid:
		case err != nil:
			return 0, err
		case status.Signaled():
			return 128 + int(status.Signal()), nil
		default:
			return status.ExitStatus(), nil
		}
	}
}
