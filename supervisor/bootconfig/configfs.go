package bootconfig

import (
	"cmp"
	"encoding/json"
	"maps"

	"path/filepath"
	"slices"
	"strings"

	"github.com/minke-os/minke/internal/errdef"
)

// takesTables reports whether a device's peripherals are told to its kernel by
// ACPI tables (SSDT overlays) that the host has.
func takesTables(deviceType string) bool { return deviceType == "up-board" }

const (
	tablesPrefix, tablesName = "HOST_CONFIGFS_", "ssdt"

	// tablesDir has the tables of the host's image, <name>.aml.
	tablesDir = "/boot/acpi-tables"
)

// configFS is a file that names tables, {"ssdt":["spidev1.0"]}. Host.LoadTable of
// package host loads them at each start. A file that is damaged names none, and is
// written anew.
func configFS(f Facts) Backend {
	return Backend{tablesPrefix, textFile{path: tablesFile(f), read: readConfigFS, edit: func(text string, want map[string]string, gone []string) (string, error) {
		return editConfigFS(text, want, gone, filepath.Join(f.Root, tablesDir))
	}}}
}

// Tables are the files that a host's kernel is to load as it starts.
func Tables(f Facts) ([]string, error) {
	if f.Dir == "" || !takesTables(f.DeviceType) {
		return nil, nil
	}
	text, err := textFile{path: tablesFile(f)}.text()
	var files []string
	for _, name := range namedTables(text) {
		files = append(files, filepath.Join(f.Root, tablesDir, filepath.Base(name)+".aml"))
	}
	return files, err
}

func tablesFile(f Facts) string { return filepath.Join(f.Dir, "configfs.json") }

func namedTables(text string) []string {
	var file struct{ SSDT []string }
	if json.Unmarshal([]byte(text), &file) != nil {
		return nil
	}
	return file.SSDT
}

func readConfigFS(text string) map[string]string {
	if tables := namedTables(text); len(tables) > 0 {
		return map[string]string{tablesName: quoted(tables)}
	}
	return map[string]string{}
}

func editConfigFS(text string, want map[string]string, gone []string, dir string) (string, error) {
	if err := only(tablesPrefix, want, tablesName); err != nil {
		return "", err
	}
	file := map[string]json.RawMessage{}
	if json.Unmarshal([]byte(text), &file) != nil {
		file = map[string]json.RawMessage{}
	}
	value, given := want[tablesName]
	switch {
	case given && value != "":
		tables, err := list(value)
		if err != nil {
			return "", errdef.Invalid.Errorf("%s%s: %w", tablesPrefix, tablesName, err)
		}
		if err := thereAre(tables, dir); err != nil {
			return "", err
		}
		file[tablesName], _ = json.Marshal(tables) // strings
	case given || slices.Contains(gone, tablesName):
		delete(file, tablesName)
	}
	out, err := json.Marshal(file)
	return string(out), err
}

// thereAre refuses tables that the host does not have: it would reboot for
// nothing.
func thereAre(tables []string, dir string) error {
	files, _ := filepath.Glob(filepath.Join(dir, "*.aml"))
	has := map[string]bool{}
	for _, f := range files {
		has[strings.TrimSuffix(filepath.Base(f), ".aml")] = true
	}
	for _, name := range tables {
		if !has[name] {
			return errdef.NotFound.Errorf("%s%s: %s has no table %q; it has %s", tablesPrefix, tablesName, dir, name, cmp.Or(strings.Join(slices.Sorted(maps.Keys(has)), ", "), "none"))
		}
	}
	return nil
}
