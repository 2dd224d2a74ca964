package boot

import (
	"fmt"
	"strings"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/cyphar/filepath-securejoin/pathrs-lite/procfs"
	"golang.org/x/sys/unix"
)

// writeSysctls writes through a private procfs: the container's /proc may have
// other things mounted where the keys should be (CVE-2025-52881).
func writeSysctls(sysctls map[string]string) error {
	if len(sysctls) == 0 {
		return nil
	}
	proc, err := procfs.OpenProcRoot()
	if err != nil {
		return fmt.Errorf("open procfs: %w", err)
	}
	defer proc.Close()
	for key, value := range sysctls {
		if err := writeSysctl(proc, key, value); err != nil {
			return fmt.Errorf("sysctl %s=%s: %w", key, value, err)
		}
	}
	return nil
}

func writeSysctl(proc *procfs.Handle, key, value string) error {
	h, err := proc.OpenRoot("sys/" + strings.ReplaceAll(key, ".", "/"))
	if err != nil {
		return err
	}
	defer h.Close()
	f, err := pathrs.Reopen(h, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}

// writeThreadAttr tells AppArmor what this thread shall become, also through a
// private procfs.
func writeThreadAttr(value string) error {
	proc, err := procfs.OpenProcRoot()
	if err != nil {
		return fmt.Errorf("open procfs: %w", err)
	}
	defer proc.Close()
	h, done, err := proc.OpenThreadSelf("attr/apparmor/exec")
	if err != nil { // before Linux 5.8
		if h, done, err = proc.OpenThreadSelf("attr/exec"); err != nil {
			return err
		}
	}
	defer done()
	defer h.Close()
	f, err := pathrs.Reopen(h, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}
