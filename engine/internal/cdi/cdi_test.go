package cdi

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// As nvidia-ctk writes it.
const sample = `---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/zero
      hostPath: /dev/null # another one
      fileMode: 438
  name: "0"
- name: all
  containerEdits:
    deviceNodes:
      - path: /dev/zero
      - path: /dev/full
        permissions: rw
containerEdits:
  additionalGids: [ ]
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  - 'QUOTED=it''s "so"'
  hooks:
  - args:
    - nvidia-ctk
    - hook
    - --link
    - ../libcuda.so.1::/usr/lib/libcuda.so
    hookName: createContainer
    path: /usr/bin/nvidia-ctk
  mounts:
  - containerPath: /usr/bin/nvidia-smi
    hostPath: /usr/bin/nvidia-smi
    options:
    - ro
    - bind
`

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func empty() *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Env: []string{"PATH=/bin", "NVIDIA_VISIBLE_DEVICES=all"}}, Linux: &specs.Linux{}}
}

func TestDeviceIsApplied(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "nvidia.yaml", strings.Replace(sample, "[ ]", "[]", 1))
	r := Read([]string{"/nosuch", dir})
	if len(r.Errors) > 0 {
		t.Fatal(r.Errors)
	}
	if got, want := r.Names(), []string{"nvidia.com/gpu=0", "nvidia.com/gpu=all"}; !slices.Equal(got, want) {
		t.Errorf("Names() = %v, want %v", got, want)
	}
	s := empty()
	s.Mounts = []specs.Mount{{Destination: "/usr/bin/nvidia-smi/below"}}
	if err := r.Apply(s, []string{"nvidia.com/gpu=0"}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"PATH=/bin", "NVIDIA_VISIBLE_DEVICES=void", `QUOTED=it's "so"`}; !slices.Equal(s.Process.Env, want) {
		t.Errorf("environment %v, want %v", s.Process.Env, want)
	}
	if len(s.Linux.Devices) != 1 || s.Linux.Devices[0].Path != "/dev/zero" || s.Linux.Devices[0].Minor != 3 || *s.Linux.Devices[0].FileMode != 0o666 {
		t.Errorf("devices %+v, want the host's /dev/null as /dev/zero", s.Linux.Devices)
	}
	if len(s.Linux.Resources.Devices) != 1 || s.Linux.Resources.Devices[0].Access != "rwm" {
		t.Errorf("rules %+v, want one", s.Linux.Resources.Devices)
	}
	if len(s.Mounts) != 2 || s.Mounts[0].Source != "/usr/bin/nvidia-smi" || s.Mounts[0].Type != "bind" {
		t.Errorf("mounts %+v, want a bind before what is below it", s.Mounts)
	}
	if s.Hooks == nil || len(s.Hooks.CreateContainer) != 1 || s.Hooks.CreateContainer[0].Args[3] != "../libcuda.so.1::/usr/lib/libcuda.so" {
		t.Errorf("hooks %+v", s.Hooks)
	}
	err := r.Apply(empty(), []string{"nvidia.com/gpu=0", "nvidia.com/gpu=7", "a.b/c=d"})
	if !errdef.Is(err, errdef.Invalid) || !strings.Contains(err.Error(), "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=7, a.b/c=d") {
		t.Errorf("unknown devices: %v", err)
	}
}

func TestLaterDirectoriesWinAndNeighboursConflict(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	spec := func(env, names string) string {
		return `{"cdiVersion":"0.6.0","kind":"a.b/c","devices":[` + names + `],"containerEdits":{"env":["` + env + `"]}}`
	}
	write(t, first, "1.json", spec("X=1", `{"name":"x"},{"name":"y"}`))
	write(t, second, "1.json", spec("X=2", `{"name":"x"},{"name":"z"}`))
	write(t, second, "2.json", spec("X=3", `{"name":"z"}`))
	write(t, second, "broken.json", `{"cdiVersion":"0.6.0","kind":"nothing"}`)
	write(t, second, "ignored.txt", `x`)
	r := Read([]string{first, second})
	if got, want := r.Names(), []string{"a.b/c=x", "a.b/c=y"}; !slices.Equal(got, want) {
		t.Errorf("Names() = %v, want %v", got, want)
	}
	s := empty()
	if err := r.Apply(s, []string{"a.b/c=x"}); err != nil || !slices.Contains(s.Process.Env, "X=2") {
		t.Errorf("Apply: %v, environment %v; want that of the later directory", err, s.Process.Env)
	}
	if err := r.Apply(empty(), []string{"a.b/c=z"}); err == nil || !strings.Contains(err.Error(), "broken.json: kind is") {
		t.Errorf("Apply: %v, want it to fail and to tell of the broken file", err)
	}
}

func TestWhatCannotBeDoneIsRefused(t *testing.T) {
	for name, text := range map[string]string{
		"rdt":  `{"intelRdt":{"closID":"x"}}`,
		"net":  `{"netDevices":[{"hostInterfaceName":"a","name":"b"}]}`,
		"hook": `{"hooks":[{"hookName":"never","path":"/x"}]}`,
		"node": `{"deviceNodes":[{"path":"/dev/nosuchdevice"}]}`,
	} {
		var e edits
		if err := json.Unmarshal([]byte(text), &e); err != nil {
			t.Fatal(err)
		}
		if err := e.apply(empty()); err == nil {
			t.Errorf("%s: applied, want an error", name)
		}
	}
}

// FuzzParse: whatever a file has, it is read or refused.
func FuzzParse(f *testing.F) {
	f.Add(sample, true)
	f.Add(`{"cdiVersion":"0.5.0","kind":"a.b/c","devices":[{"name":"x"}]}`, false)
	f.Add("a: &a [*a]\n1: 2\n", true)
	f.Fuzz(func(t *testing.T, text string, isYAML bool) {
		if got, err := parse([]byte(text), isYAML); (got == nil) == (err == nil) {
			t.Errorf("parse = %v, %v; want one of them", got, err)
		}
	})
}
