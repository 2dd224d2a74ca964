package host

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestATableIsLoadedOnce(t *testing.T) {
	root := t.TempDir()
	write(t, root, map[string]string{"boot/acpi-tables/i2c1.aml": "SSDT one", "sys/kernel/config/acpi/table/before/aml": "SSDT"})
	h := New(Options{Root: root})
	file := filepath.Join(root, "boot/acpi-tables/i2c1.aml")
	loaded := func() string {
		data, err := os.ReadFile(filepath.Join(root, "sys/kernel/config/acpi/table/i2c1/aml"))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if err := h.LoadTable(t.Context(), file); err != nil || loaded() != "SSDT one" {
		t.Errorf("LoadTable = %v, the kernel has %q", err, loaded())
	}
	write(t, root, map[string]string{"boot/acpi-tables/i2c1.aml": "SSDT two"})
	if err := h.LoadTable(t.Context(), file); err != nil || loaded() != "SSDT one" {
		t.Errorf("LoadTable again = %v, the kernel has %q; want what it has to stay until a reboot", err, loaded())
	}
}

func TestATableThatCannotBeLoadedIsTriedAgain(t *testing.T) {
	t.Setenv("PATH", "") // this machine's kernel is to stay as it is
	root := t.TempDir()
	h := New(Options{Root: root})
	file := filepath.Join(root, "boot/acpi-tables/i2c1.aml")
	if err := h.LoadTable(t.Context(), file); err == nil || !strings.Contains(err.Error(), "ACPI table i2c1: open "+file) {
		t.Errorf("LoadTable of a missing file = %v", err)
	}
	write(t, root, map[string]string{"boot/acpi-tables/i2c1.aml": "SSDT"})
	if err := h.LoadTable(t.Context(), file); err == nil || !strings.Contains(err.Error(), "ACPI table i2c1: this host's kernel takes none") {
		t.Errorf("LoadTable without configfs = %v", err)
	}
	write(t, root, map[string]string{"sys/kernel/config/acpi/table/before/aml": "SSDT"})
	if err := h.LoadTable(t.Context(), file); err != nil {
		t.Errorf("LoadTable with it = %v", err)
	}
}
