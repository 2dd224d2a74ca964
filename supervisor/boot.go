package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/supervisor/model"
)

// boot is what the device's boot partition and host say of it: our part of
// config.json and device-type.json.
type boot struct {
	UUID          string  `json:"uuid"`
	APIEndpoint   string  `json:"apiEndpoint"`
	LogsEndpoint  string  `json:"logsEndpoint"`
	DeltaEndpoint string  `json:"deltaEndpoint"`
	APIKey        string  `json:"apiKey"` // to register with
	DeviceAPIKey  string  `json:"deviceApiKey"`
	Application   any     `json:"applicationId"` // a number, or one in quotes
	DeviceID      int     `json:"deviceId"`
	RegisteredAt  float64 `json:"registered_at"` // ms since 1970
	PollInterval  any     `json:"appUpdatePollInterval"`
	ListenPort    int     `json:"listenPort"`
	Hostname      string  `json:"hostname"`
	InitialName   string  `json:"initialDeviceName"`
	DeviceType    string  `json:"deviceType"`
	Development   bool    `json:"developmentMode"`

	PersistentLogging any            `json:"persistentLogging"`
	System            map[string]any `json:"os"`

	arch string
	os   map[string]string // /etc/os-release
}

// readBoot reads the files in dir; each may be missing.
func readBoot(dir string) (boot, error) {
	b := boot{arch: arch(), os: osRelease("/etc/os-release")}
	var kind struct{ Slug, Arch string }
	if dir != "" {
		if err := readJSON(filepath.Join(dir, "config.json"), &b); err != nil {
			return boot{}, err
		}
		if err := readJSON(filepath.Join(dir, "device-type.json"), &kind); err != nil {
			return boot{}, err
		}
	}
	if kind.Slug != "" {
		b.DeviceType = kind.Slug
	}
	if kind.Arch != "" {
		b.arch = kind.Arch
	}
	if b.DeviceType == "" {
		b.DeviceType = defaultType(b.arch)
	}
	return b, nil
}

// bootNow is what was read last.
func (s *Supervisor) bootNow() boot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.boot
}

// changeBoot changes keys of config.json, and what we know of it.
func (s *Supervisor) changeBoot(values map[string]any) error {
	if s.cfg.BootDir == "" {
		return errdef.Unsupported.Errorf("this device has no config.json; start minked with --boot-dir")
	}
	if err := s.config.Set(values); err != nil {
		return err
	}
	b, err := readBoot(s.cfg.BootDir)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b.ListenPort = s.boot.ListenPort // of the listeners there are; another one takes a restart
	s.boot = b
	return nil
}

func readJSON(path string, into any) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// arch is balena's name of the processor architecture.
func arch() string {
	switch runtime.GOARCH {
	case "arm64":
		return "aarch64"
	case "arm":
		return "armv7hf"
	case "386":
		return "i386"
	}
	return runtime.GOARCH
}

// defaultType is the generic device type of an architecture.
func defaultType(arch string) string {
	if arch == "amd64" {
		return "generic-amd64"
	}
	return "generic-" + arch
}

func osRelease(path string) map[string]string {
	out := map[string]string{}
	data, err := os.ReadFile(path)
	if err != nil { // a host without one has no name
		return out
	}
	for line := range strings.Lines(string(data)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			out[k] = strings.Trim(v, `"'`)
		}
	}
	return out
}

// device is what containers may learn.
func (s *Supervisor) device(t model.Target) model.Device {
	b := s.bootNow()
	hostname := b.Hostname
	if hostname == "" {
		hostname, _ = os.Hostname()
	}
	port := b.ListenPort
	return model.Device{
		UUID: s.store.UUID(), Name: s.deviceName(t), Type: b.DeviceType, Arch: b.arch,
		OSVersion: b.os["PRETTY_NAME"], BoardRev: b.os["BALENA_BOARD_REV"],
		Hostname:     hostname,
		LockRoot:     filepath.Join(s.cfg.HostTmp, "services"),
		EngineSocket: s.cfg.EngineSocket,
		APIPort:      port,
		CloudKey:     b.DeviceAPIKey, CloudURL: b.APIEndpoint,
		HasModules: exists("/lib/modules"), HasFirmware: exists("/lib/firmware"),
		ServiceKey: func(app model.AppID, svc string) string { return s.store.Key(serviceKey(app, svc)) },
	}
}

func (s *Supervisor) deviceName(t model.Target) string {
	b := s.bootNow()
	for _, name := range []string{t.Name, b.InitialName, b.Hostname} {
		if name != "" {
			return name
		}
	}
	uuid := s.store.UUID()
	return uuid[:min(7, len(uuid))]
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
