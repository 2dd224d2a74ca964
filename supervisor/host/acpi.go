package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/minke-os/minke/internal/errdef"
)

// LoadTable has the kernel load an ACPI table from a file such as spidev1.0.aml,
// unless it has, through a directory of that name in configfs. The kernel keeps a
// table until it reboots. See Documentation/admin-guide/acpi/ssdt-overlays.rst of Linux.
func (h *Host) LoadTable(ctx context.Context, file string) error {
	name := strings.TrimSuffix(filepath.Base(file), ".aml")
	table, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("ACPI table %s: %w", name, err)
	}
	dir := filepath.Join(h.o.Root, "/sys/kernel/config/acpi/table")
	if _, err := os.Stat(dir); err != nil {
		out, err := exec.CommandContext(ctx, "modprobe", "acpi_configfs").CombinedOutput()
		if err != nil {
			return errdef.Unsupported.Errorf("ACPI table %s: this host's kernel takes none: modprobe acpi_configfs: %w %s", name, err, strings.TrimSpace(string(out)))
		}
	}
	dir = filepath.Join(dir, name)
	err = os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		err = h.fillTable(dir, table)
	}
	if err != nil {
		os.Remove(dir) // so that the next start tries again
		return fmt.Errorf("ACPI table %s: %w", name, err)
	}
	return nil
}

// fillTable writes a table. The kernel loads it when the file is closed and does
// not say then whether it could; reading what it made of it does.
func (h *Host) fillTable(dir string, table []byte) error {
	if err := os.WriteFile(filepath.Join(dir, "aml"), table, 0o644); err != nil {
		return err
	}
	_, err := os.ReadFile(filepath.Join(dir, "oem_table_id"))
	if errors.Is(err, fs.ErrNotExist) { // no configfs
		return nil
	}
	return err
}
