//go:build linux

package main

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// kernelPackage is Debian's smallest kernel; it depends on the one of the day.
const kernelPackage = "linux-image-cloud-amd64"

// modules are what the machine, the engine and the tests need. There is no
// modprobe in the guest, so what the kernel would ask for is here, too.
var modules = []string{
	"virtio_pci", "virtio_blk", "virtio_console", "crc32c_generic", "overlay", "loop", "squashfs", "fuse",
	"ipv6", "veth", "bridge", "dummy", "macvlan", "tun",
	"nf_tables", "nft_chain_nat", "nft_nat", "nft_masq", "nft_redir", "nft_ct", "nft_fib_inet", "nft_fib_ipv4", "nft_fib_ipv6",
	"nft_limit", "nft_log", "nft_reject_inet", "nft_hash", "nft_numgen", "nf_conntrack_netlink", "nfnetlink_queue",
}

// kernel is an unpacked one.
type kernel struct {
	image   string
	modules map[string]string // file by name
}

func fetchKernel(ctx context.Context) (k kernel, err error) {
	name, err := currentKernel(ctx)
	if err != nil {
		return k, err
	}
	root := filepath.Join(dir, name)
	if _, err := os.Stat(root); err != nil {
		if err := unpackKernel(ctx, name, root); err != nil {
			return k, err
		}
	}
	images, err := filepath.Glob(root + "/boot/vmlinuz-*")
	if err != nil || len(images) != 1 {
		return k, fmt.Errorf("%s has kernels %q, want one; remove it to fetch it again", root, images)
	}
	k.image, k.modules = images[0], map[string]string{}
	return k, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if base, ok := strings.CutSuffix(d.Name(), ".ko"); ok {
			k.modules[strings.ReplaceAll(base, "-", "_")] = path
		}
		return err
	})
}

var versioned = regexp.MustCompile(`linux-image-[0-9][^ ,]*`)

func currentKernel(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-cache", "show", "--no-all-versions", kernelPackage).Output()
	if err != nil {
		return "", fmt.Errorf("apt does not know %s; is its list of packages up to date (apt-get update)? %w", kernelPackage, err)
	}
	for line := range strings.Lines(string(out)) {
		if depends, ok := strings.CutPrefix(line, "Depends: "); ok {
			return versioned.FindString(depends), nil
		}
	}
	return "", fmt.Errorf("%s depends on no kernel", kernelPackage)
}

func unpackKernel(ctx context.Context, name, root string) error {
	tmp, err := os.MkdirTemp(dir, "fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	get := exec.CommandContext(ctx, "apt-get", "-q", "download", name)
	get.Dir, get.Stderr = tmp, os.Stderr
	if err := get.Run(); err != nil {
		return fmt.Errorf("download %s: %w", name, err)
	}
	debs, err := filepath.Glob(tmp + "/*.deb")
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("download %s: got %q", name, debs)
	}
	if err := command(ctx, "dpkg-deb", "-x", debs[0], tmp+"/root"); err != nil {
		return err
	}
	return os.Rename(tmp+"/root", root)
}

func command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}

// load lists the files of modules in an order in which they can be loaded.
// What is not there is built in.
func (k kernel) load(names []string) (files []string, err error) {
	seen := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		path, ok := k.modules[name]
		if seen[name] || !ok {
			return nil
		}
		seen[name] = true
		needs, err := dependencies(path)
		for _, n := range needs {
			if err == nil {
				err = add(n)
			}
		}
		files = append(files, path)
		return err
	}
	for _, n := range names {
		if err := add(n); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// dependencies reads what depmod would.
func dependencies(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("%s is no kernel module", path)
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(field), "depends="); ok && list != "" {
			return strings.Split(strings.ReplaceAll(list, "-", "_"), ","), nil
		}
	}
	return nil, nil
}
