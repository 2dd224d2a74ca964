package bootconfig

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSetKeepsWhatItDoesNotKnow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte(`{"uuid":"abc","wifi":{"ssid":"x"},"apiKey":"secret"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	f := At(path)
	if err := f.Set(map[string]any{"deviceId": 7, "apiKey": nil}); err != nil {
		t.Fatal(err)
	}
	var got struct {
		UUID     string
		APIKey   string
		DeviceID int
		WiFi     struct{ SSID string }
	}
	if err := f.Read(&got); err != nil || got.UUID != "abc" || got.APIKey != "" || got.DeviceID != 7 || got.WiFi.SSID != "x" {
		t.Errorf("Read = %+v, %v", got, err)
	}
	before, _ := os.Stat(path)
	if err := f.Set(map[string]any{"deviceId": 7, "wifi": map[string]string{"ssid": "x"}}); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(path); !os.SameFile(before, after) {
		t.Error("a file that says so already is written again")
	}
}

func TestAFileThatCannotBeReadIsNotReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte(`{"uuid":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := At(path).Set(map[string]any{"a": 1}); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("Set = %v, want an error that names the file", err)
	}
	if data, _ := os.ReadFile(path); string(data) != `{"uuid":` {
		t.Errorf("the file became %q", data)
	}
}
