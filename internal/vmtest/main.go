//go:build linux

// Command vmtest runs tests in a virtual machine whose kernel is Debian's and
// whose control groups are of version 2 alone, as on every current
// distribution, whatever the machine has that it runs on.
//
// It fetches the kernel with apt, unpacked and never installed, compiles the
// tests and programs, makes a disk of them and boots it in QEMU: by KVM where
// that works, else by software, which takes minutes. What the tests print
// comes back as events of "go test -json", for internal/testlog:
//
//	vmtest [-run REGEXP] [PACKAGE...] | testlog
//
// Everything it makes is in bin/vm and is used again where it can be. Packages
// with no name given are those in the table suites.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A suite is a test program, and what of it is worth a slow machine's time.
type suite struct {
	Package string
	Run     string // as for go test -run; empty: all
	Skip    string // as for go test -skip
}

const module = "github.com/minke-os/minke/"

var suites = []suite{
	{Package: "runtime/internal/cgroup"},
	{Package: "engine/internal/cgroup"},
	{Package: "runtime/internal/boot"},
	{Package: "internal/overlay"},
	{Package: "internal/userns"},
	// The monitor's memory is measured when it has rested, which takes too long
	// here.
	{Package: "runtime", Skip: "^TestSizeOfTheMonitor$"},
	{Package: "cmd/minked", Run: "^(TestRun|TestControlGroups|TestKilledMonitorLosesNothing|TestUserNamespaces)$"},
}

const dir = "bin/vm"

func main() {
	run := flag.String("run", "", "only tests that match")
	most := flag.Duration("timeout", 15*time.Minute, "after which the machine is switched off")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), *most)
	defer cancel()
	if err := vmtest(ctx, choose(flag.Args(), *run)); err != nil {
		// A pipe has no exit code: what failed must be an event, too.
		e := json.NewEncoder(os.Stdout)
		e.Encode(map[string]string{"Action": "output", "Package": "vm", "Output": "vmtest: " + err.Error() + "\n"})
		e.Encode(map[string]string{"Action": "fail", "Package": "vm"})
		os.Exit(1)
	}
}

func choose(packages []string, run string) []suite {
	var chosen []suite
	for _, s := range suites {
		if len(packages) > 0 && !slices.Contains(packages, s.Package) {
			continue
		}
		if run != "" {
			s.Run = run
		}
		chosen = append(chosen, s)
	}
	return chosen
}

func vmtest(ctx context.Context, suites []suite) error {
	if len(suites) == 0 {
		return fmt.Errorf("none of these packages has tests for the virtual machine; see the table in internal/vmtest")
	}
	k, err := fetchKernel(ctx)
	if err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	initrd := filepath.Join(dir, "initrd")
	if err := makeInitrd(ctx, k, initrd); err != nil {
		return fmt.Errorf("initial file system: %w", err)
	}
	disk := filepath.Join(dir, "disk")
	if err := makeDisk(ctx, suites, disk); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	return boot(ctx, k.image, initrd, disk)
}

// boot runs the machine to its end and passes on what the tests print. Where
// the processor's virtualization gives up, as it may in a machine that is
// virtual itself, it is emulated.
func boot(ctx context.Context, kernel, initrd, disk string) error {
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err == nil {
		f.Close()
		if err := bootWith(ctx, "kvm:tcg", kernel, initrd, disk); !errors.Is(err, errKVM) {
			return err
		}
		fmt.Fprintln(os.Stderr, "vmtest: KVM does not run this kernel here: emulating it, which is slower")
	}
	return bootWith(ctx, "tcg", kernel, initrd, disk)
}

var errKVM = errors.New("KVM met an instruction that it cannot run")

func bootWith(ctx context.Context, accel, kernel, initrd, disk string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	console := filepath.Join(dir, "console.log")
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "q35,accel="+accel, "-cpu", "max", "-smp", "2", "-m", "2048",
		"-nodefaults", "-display", "none", "-no-reboot", "-serial", "file:"+console,
		"-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1 net.ifnames=0 cgroup_no_v1=all",
		"-drive", "if=none,id=d0,format=raw,cache=unsafe,file="+disk, "-device", "virtio-blk-pci,drive=d0",
		// The results come by a descriptor, apart from the kernel's messages.
		"-add-fd", "fd=3,set=1", "-chardev", "file,id=c0,path=/dev/fdset/1,append=on",
		"-device", "virtio-serial-pci", "-device", "virtserialport,chardev=c0,name=results")
	cmd.ExtraFiles = []*os.File{w}
	cmd.Stderr = &kvmWatch{broken: func() { cancel(errKVM) }}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	ended, err := relay(r, os.Stdout)
	switch werr := cmd.Wait(); {
	case errors.Is(context.Cause(ctx), errKVM):
		err = errKVM
	case ctx.Err() != nil:
		err = fmt.Errorf("the tests took too long (-timeout)")
	case err == nil:
		err = werr
	}
	if err == nil && !ended {
		err = fmt.Errorf("the machine ended before its tests did; the end of its console:\n%s", tail(console))
	}
	return err
}

// kvmWatch passes QEMU's messages on. After an internal error of KVM, QEMU
// only halts the machine.
type kvmWatch struct{ broken func() }

func (k *kvmWatch) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("KVM internal error")) {
		k.broken()
	}
	return os.Stderr.Write(p)
}

func tail(path string) string {
	data, _ := os.ReadFile(path)
	return string(data[max(0, len(data)-4000):])
}

// Lines of the guest about the tests, among the lines of the tests.
const (
	beginMark = "@@begin " // package
	endMark   = "@@end "   // exit code, seconds
	doneMark  = "@@done"
)

// relay turns the guest's lines into events. It reports whether the guest came
// to its end.
func relay(in io.Reader, out io.Writer) (ended bool, err error) {
	var to io.WriteCloser
	var tool *exec.Cmd
	var name string
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if err == io.EOF {
			break
		}
		if err != nil {
			return false, err
		}
		switch {
		case strings.HasPrefix(line, beginMark):
			name = module + strings.TrimSpace(line[len(beginMark):])
			tool = exec.Command("go", "tool", "test2json", "-p", name)
			tool.Stdout, tool.Stderr = out, os.Stderr
			if to, err = tool.StdinPipe(); err != nil {
				return false, err
			}
			if err := tool.Start(); err != nil {
				return false, err
			}
		case strings.HasPrefix(line, endMark):
			var code int
			var seconds float64
			fmt.Sscan(line[len(endMark):], &code, &seconds)
			if code == 0 {
				fmt.Fprintf(to, "ok  \t%s\t%.1fs\n", name, seconds)
			} else {
				fmt.Fprintf(to, "FAIL\nFAIL\t%s\t%.1fs\n", name, seconds)
			}
			to.Close()
			if err := tool.Wait(); err != nil {
				return false, err
			}
			to = nil
		case strings.HasPrefix(line, doneMark):
			ended = true
		case to != nil:
			io.WriteString(to, line)
		default:
			fmt.Fprint(out, line)
		}
	}
	if to != nil { // the machine broke down
		io.WriteString(to, "FAIL\n")
		to.Close()
		tool.Wait()
	}
	return ended, nil
}
