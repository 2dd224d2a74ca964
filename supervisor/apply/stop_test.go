package apply

import (
	"testing"

	"github.com/moby/moby/api/types/container"

	"github.com/minke-os/minke/supervisor/model"
)

func TestDeaf(t *testing.T) {
	const (
		inside  = "NSpid:\t812\t1\n"
		nothing = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\nSigCgt:\t0000000000000000\n"
	)
	for _, tt := range []struct {
		name, status, signal string
		want                 bool
	}{
		{"no-handler", inside + nothing, "", true},
		{"a-handler-of-another-signal", inside + "SigBlk:\t0\nSigIgn:\t0\nSigCgt:\t0000000000000002\n", "SIGTERM", true},
		{"a-handler", inside + "SigBlk:\t0\nSigIgn:\t0\nSigCgt:\t0000000000004000\n", "SIGTERM", false},
		{"a-handler-of-the-stop-signal", inside + "SigBlk:\t0\nSigIgn:\t0\nSigCgt:\t0000000000000002\n", "int", false},
		{"sigwait", inside + "SigBlk:\t0000000000004000\nSigIgn:\t0\nSigCgt:\t0\n", "15", false},
		{"ignored-for-now", inside + "SigBlk:\t0\nSigIgn:\t0000000000004000\nSigCgt:\t0\n", "TERM", false},
		{"systemd", inside + "SigBlk:\t0000001000000000\nSigIgn:\t0\nSigCgt:\t0\n", "SIGRTMIN+3", false},
		{"a-signal-that-is-none", inside + nothing, "SIGNOTHING", false},
		{"the-host's-namespace", "NSpid:\t1\n" + nothing, "", false},
		{"not-process-1", "NSpid:\t812\t7\n" + nothing, "", false},
		{"an-old-kernel", nothing, "", false},
		{"no-signals", inside, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := deaf([]byte(tt.status), tt.signal); got != tt.want {
				t.Errorf("deaf(%q, %q) = %v, want %v", tt.status, tt.signal, got, tt.want)
			}
		})
	}
}

func TestAGraceThatIsGivenIsKnown(t *testing.T) {
	for _, tt := range []struct {
		composition map[string]any
		want        bool
	}{
		{map[string]any{}, false},
		{map[string]any{"stop_grace_period": "10s"}, true}, // which would be the default
		{map[string]any{"stop_grace_period": "0s"}, true},
		{map[string]any{"stop_grace_period": "1m"}, true},
	} {
		app := model.App{ID: 1, Services: []model.Service{{Name: "web", Image: "i", Composition: tt.composition}}}
		spec, err := model.Compose(app, model.Device{ServiceKey: func(model.AppID, string) string { return "" }})
		if err != nil {
			t.Fatal(err)
		}
		if got := graceGiven(spec.Services[0].Config); got != tt.want {
			t.Errorf("graceGiven of %v = %v, want %v", tt.composition, got, tt.want)
		}
	}
	ten := model.DefaultGrace
	if !graceGiven(&container.Config{StopTimeout: &ten}) {
		t.Error("the grace of a container that another supervisor made is not kept")
	}
}
