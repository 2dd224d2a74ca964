package engine

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/internal/errdef"
)

func subIDFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "subids")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestParseUserRemap(t *testing.T) {
	uids := subIDFile(t, "# who\nroot:700000:10\nmapped:100000:65536\nother:1:1\nmapped:300000:10\ndockremap:165536:65536\n")
	gids := subIDFile(t, "grouped:200000:1000\nmapped:400000:65536\n4242424:5:5\ndockremap:165536:65536\n")
	tests := []struct {
		text       string
		uids, gids []specs.LinuxIDMapping
		says       string // the error
	}{
		{text: "mapped", uids: []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}, {ContainerID: 65536, HostID: 300000, Size: 10}}, gids: []specs.LinuxIDMapping{{HostID: 400000, Size: 65536}}},
		{text: "other:grouped", uids: []specs.LinuxIDMapping{{HostID: 1, Size: 1}}, gids: []specs.LinuxIDMapping{{HostID: 200000, Size: 1000}}},
		{text: "0:4242424", uids: []specs.LinuxIDMapping{{HostID: 700000, Size: 10}}, gids: []specs.LinuxIDMapping{{HostID: 5, Size: 5}}},
		{text: "default", uids: []specs.LinuxIDMapping{{HostID: 165536, Size: 65536}}, gids: []specs.LinuxIDMapping{{HostID: 165536, Size: 65536}}},
		{text: "nobodyhere", says: "no subordinate IDs"},
		{text: ":grouped", says: "want default, user or user:group"},
		{text: "mapped:", says: "want default, user or user:group"},
	}
	for _, tt := range tests {
		m, err := ParseUserRemap(tt.text, uids, gids)
		if tt.says != "" {
			if !errdef.Is(err, errdef.Invalid) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("ParseUserRemap(%q): %v, want %q", tt.text, err, tt.says)
			}
			continue
		}
		if err != nil || !slices.Equal(m.UIDs, tt.uids) || !slices.Equal(m.GIDs, tt.gids) {
			t.Errorf("ParseUserRemap(%q) = %v, %v; want %v, %v", tt.text, m, err, tt.uids, tt.gids)
		}
	}
	if _, err := ParseUserRemap("mapped", subIDFile(t, "mapped:x:1\n"), gids); !errdef.Is(err, errdef.Invalid) {
		t.Errorf("a broken line: %v, want kind %v", err, errdef.Invalid)
	}
}

func TestSubordinateIDsAreMadeOnce(t *testing.T) {
	file := subIDFile(t, "someone:100000:65536\nelse:300000:10") // without an end of line
	for range 2 {
		if err := ensureSubIDs("dockremap", file); err != nil {
			t.Fatal(err)
		}
	}
	want := "someone:100000:65536\nelse:300000:10\ndockremap:300010:65536\n"
	if got, _ := os.ReadFile(file); string(got) != want {
		t.Errorf("the file is %q, want %q", got, want)
	}
}
