package engine

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"

	"github.com/minke-os/minke/engine/internal/cdi"
)

func TestDeviceRequests(t *testing.T) {
	dir := t.TempDir()
	text := `{"cdiVersion":"0.6.0","kind":"nvidia.com/gpu","devices":[{"name":"0"},{"name":"1"},{"name":"all"}]}`
	if err := os.WriteFile(filepath.Join(dir, "gpu.json"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	gpu := [][]string{{"gpu"}}
	tests := map[string]struct {
		req  container.DeviceRequest
		want []string
		says string
	}{
		"all":            {req: container.DeviceRequest{Count: -1, Capabilities: gpu}, want: []string{"nvidia.com/gpu=all"}},
		"two":            {req: container.DeviceRequest{Count: 2, Capabilities: gpu}, want: []string{"nvidia.com/gpu=0", "nvidia.com/gpu=1"}},
		"by-name":        {req: container.DeviceRequest{Driver: "nvidia", DeviceIDs: []string{"1"}, Capabilities: gpu}, want: []string{"nvidia.com/gpu=1"}},
		"cdi":            {req: container.DeviceRequest{Driver: "cdi", DeviceIDs: []string{"a.b/c=d"}}, want: []string{"a.b/c=d"}},
		"cdi-count":      {req: container.DeviceRequest{Driver: "cdi", Count: 1}, says: "neither a count"},
		"both":           {req: container.DeviceRequest{Count: 1, DeviceIDs: []string{"1"}, Capabilities: gpu}, says: "cannot set both Count and DeviceIDs"},
		"other-vendor":   {req: container.DeviceRequest{Driver: "amd", Count: 1, Capabilities: gpu}, says: `could not select device driver "amd" with capabilities: [[gpu]]`},
		"something-else": {req: container.DeviceRequest{Count: 1, Capabilities: [][]string{{"tpu"}}}, says: `could not select device driver "" with capabilities: [[tpu]]`},
	}
	for name, tt := range tests {
		got, err := requested(cdi.Read([]string{dir}), tt.req)
		if tt.says != "" {
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s: %v, want %q", name, err, tt.says)
			}
		} else if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, %v; want %v", name, got, err, tt.want)
		}
	}
	if _, err := requested(cdi.Read(nil), tests["all"].req); err == nil || !strings.Contains(err.Error(), "could not select device driver") {
		t.Errorf("without specifications: %v", err)
	}
}
