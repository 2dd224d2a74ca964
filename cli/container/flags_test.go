package container

import (
	"reflect"
	"testing"

	"github.com/moby/moby/api/types/container"
)

func TestGPUs(t *testing.T) {
	gpu := [][]string{{"gpu"}}
	for text, want := range map[string]container.DeviceRequest{
		"all":                        {Count: -1, Capabilities: gpu},
		"2":                          {Count: 2, Capabilities: gpu},
		`"device=0,GPU-ab"`:          {DeviceIDs: []string{"0", "GPU-ab"}, Capabilities: gpu},
		"driver=amd":                 {Driver: "amd", Count: -1, Capabilities: gpu},
		"count=1,capabilities=video": {Count: 1, Capabilities: [][]string{{"video", "gpu"}}},
	} {
		got, err := parseGPUs(text)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s = %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"many", "colour=red", `"`, "count=x"} {
		if got, err := parseGPUs(text); err == nil {
			t.Errorf("%s = %+v, want an error", text, got)
		}
	}
}

func TestDevicesByName(t *testing.T) {
	var host container.HostConfig
	o := &runOptions{devices: []string{"/dev/null", "vendor.com/net=eth0", "vendor.com/gpu=all"}}
	if err := o.storage(&container.Config{}, &host); err != nil {
		t.Fatal(err)
	}
	want := []container.DeviceRequest{{Driver: "cdi", DeviceIDs: []string{"vendor.com/net=eth0", "vendor.com/gpu=all"}}}
	if len(host.Devices) != 1 || !reflect.DeepEqual(host.DeviceRequests, want) {
		t.Errorf("devices = %v, requests = %v; want /dev/null and %v", host.Devices, host.DeviceRequests, want)
	}
}
