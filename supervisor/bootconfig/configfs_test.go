package bootconfig

import (
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// upBoard is one whose image has two tables, and what its file says.
func upBoard(t *testing.T, text string) (b Backend, f Facts) {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, tablesDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"spidev1.0.aml", "i2c1.aml"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("SSDT"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f = Facts{Dir: t.TempDir(), DeviceType: "up-board", Root: root}
	if text != "" {
		if err := os.WriteFile(tablesFile(f), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range Backends(f) {
		if b.Prefix == tablesPrefix {
			return b, f
		}
	}
	t.Fatal("an UP board has no ConfigFS")
	return b, f
}

func TestTablesAreNamedInAFile(t *testing.T) {
	type vars = map[string]string
	for _, tt := range []struct {
		name, file string
		want       vars
		gone       []string
		after      string
		reboot     bool
		tables     []string
	}{
		{"there-is-no-file", "", vars{"ssdt": "i2c1"}, nil, `{"ssdt":["i2c1"]}`, true, []string{"i2c1.aml"}},
		{"two", `{"ssdt":["i2c1"],"other":1}`, vars{"ssdt": `"i2c1","spidev1.0"`}, nil, `{"other":1,"ssdt":["i2c1","spidev1.0"]}`, true, []string{"i2c1.aml", "spidev1.0.aml"}},
		{"as-it-is", `{ "ssdt": ["i2c1"] }`, vars{"ssdt": "i2c1"}, nil, `{ "ssdt": ["i2c1"] }`, false, []string{"i2c1.aml"}},
		{"it-goes", `{"ssdt":["i2c1"],"other":1}`, nil, []string{"ssdt"}, `{"other":1}`, true, nil},
		{"an-empty-value", `{"ssdt":["i2c1"]}`, vars{"ssdt": ""}, nil, `{}`, true, nil},
		{"a-damaged-file", `{"ssdt":["i2`, vars{"ssdt": "i2c1"}, nil, `{"ssdt":["i2c1"]}`, true, []string{"i2c1.aml"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, f := upBoard(t, tt.file)
			reboot, err := b.Set(tt.want, tt.gone)
			text, rerr := os.ReadFile(tablesFile(f))
			if err != nil || rerr != nil || reboot != tt.reboot || string(text) != tt.after {
				t.Errorf("Set(%v, %v) = %v, %v; the file is %s, want %v and %s", tt.want, tt.gone, reboot, err, text, tt.reboot, tt.after)
			}
			if reboot, err := b.Set(tt.want, tt.gone); reboot || err != nil {
				t.Errorf("Set again = %v, %v; want nothing to do", reboot, err)
			}
			var want []string
			for _, name := range tt.tables {
				want = append(want, filepath.Join(f.Root, tablesDir, name))
			}
			if got, err := Tables(f); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("Tables = %v, %v; want %v", got, err, want)
			}
		})
	}
}

func TestTablesThatAreNotThereChangeNothing(t *testing.T) {
	for value, want := range map[string]string{
		"i2c2":             `/boot/acpi-tables has no table "i2c2"; it has i2c1, spidev1.0`,
		`"i2c1","../x"`:    `has no table "../x"`,
		`"i2c1","i2c`:      `HOST_CONFIGFS_ssdt: want "one","two"`,
		"i2c1\nspidev1.0 ": "more than one line",
	} {
		const text = `{"ssdt":["i2c1"]}`
		b, _ := upBoard(t, text)
		reboot, err := b.Set(map[string]string{"ssdt": value}, nil)
		if reboot || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Set(%q) = %v, %v; want an error with %q", value, reboot, err, want)
		}
		if got, err := b.Current(); err != nil || !maps.Equal(got, map[string]string{"ssdt": `"i2c1"`}) {
			t.Errorf("Current = %v, %v after Set(%q), want %s", got, err, value, text)
		}
	}
	b, _ := upBoard(t, "")
	if _, err := b.Set(map[string]string{"dsdt": "x"}, nil); err == nil || !strings.Contains(err.Error(), "there is only HOST_CONFIGFS_ssdt") {
		t.Errorf("Set of another setting = %v", err)
	}
}
