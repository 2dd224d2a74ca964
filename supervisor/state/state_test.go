package state

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir, "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestWhatIsStoredSurvives(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if err := s.SetTarget(SourceLocal, []byte(`{"local":{}}`)); err != nil {
		t.Fatal(err)
	}
	if err := s.EnsureKeys([]string{"12/web"}); err != nil {
		t.Fatal(err)
	}
	if err := s.SetStopped(true, "12/web", "12/db"); err != nil {
		t.Fatal(err)
	}
	if err := s.SetStopped(false, "12/db"); err != nil {
		t.Fatal(err)
	}
	if err := s.SetRested(func(rested map[string]bool) { rested["12/job"] = true }); err != nil {
		t.Fatal(err)
	}
	r := open(t, dir)
	if r.UUID() != s.UUID() || len(s.UUID()) != 32 || r.Key("12/web") != s.Key("12/web") || r.GlobalKey() != s.GlobalKey() {
		t.Errorf("identity or keys changed: %s %s, %s %s", s.UUID(), r.UUID(), s.Key("12/web"), r.Key("12/web"))
	}
	if got := r.Target(); string(got.Body) != `{"local":{}}` || got.Source != SourceLocal {
		t.Errorf("Target = %s of %s", got.Body, got.Source)
	}
	if got := r.Stopped(); len(got) != 1 || !got["12/web"] {
		t.Errorf("Stopped = %v, want 12/web alone", got)
	}
	if got := r.Rested(); len(got) != 1 || !got["12/job"] {
		t.Errorf("Rested = %v, want 12/job alone", got)
	}
}

func TestScopes(t *testing.T) {
	s := open(t, t.TempDir())
	if err := s.EnsureKeys([]string{"12/web"}); err != nil {
		t.Fatal(err)
	}
	if global, _, _, ok := s.Scope(s.GlobalKey()); !global || !ok {
		t.Errorf("the global key is not global")
	}
	if global, app, _, ok := s.Scope(s.Key("12/web")); global || app != 12 || !ok {
		t.Errorf("the service's key may act on %d, %v, %v", app, global, ok)
	}
	for _, bad := range []string{"", "x"} {
		if _, _, _, ok := s.Scope(bad); ok {
			t.Errorf("the key %q is accepted", bad)
		}
	}
}

func TestNothingIsWrittenThatDoesNotChange(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	body := []byte(`{"local":{}}`)
	if err := s.SetTarget(SourceLocal, body); err != nil {
		t.Fatal(err)
	}
	long := time.Unix(1, 0)
	for _, f := range []string{"device.json", "target.json"} {
		if err := os.Chtimes(filepath.Join(dir, f), long, long); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, dir)
	if err := s.SetTarget(SourceLocal, body); err != nil {
		t.Fatal(err)
	}
	if err := s.SetStopped(false, "1/web"); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"device.json", "target.json"} {
		if st, err := os.Stat(filepath.Join(dir, f)); err != nil || !st.ModTime().Equal(long) {
			t.Errorf("%s was written again: %v, %v", f, st.ModTime(), err)
		}
	}
}

func TestADamagedFileIsSetAside(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "device.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s := open(t, dir); s.UUID() == "" {
		t.Errorf("no identity")
	}
	if _, err := os.Stat(filepath.Join(dir, "device.json.corrupt")); err != nil {
		t.Error(err)
	}
}

func TestANewerFormatIsNotTouched(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "device.json"), []byte(`{"version":2}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, "", slog.New(slog.DiscardHandler)); err == nil {
		t.Error("Open reads a format it does not know")
	}
}

func TestWhatIsForgottenStaysForgotten(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	apps := map[string]json.RawMessage{"aaaa": json.RawMessage(`{"id":1}`)}
	if err := errors.Join(s.SetHeld(apps), s.SetLocal([]byte(`{}`))); err != nil {
		t.Fatal(err)
	}
	if got := open(t, dir).Held(); string(got["aaaa"]) != `{"id":1}` {
		t.Errorf("Held = %s", got)
	}
	if err := errors.Join(s.SetHeld(nil), s.SetLocal(nil)); err != nil {
		t.Fatal(err)
	}
	if r := open(t, dir); len(r.Held()) != 0 || r.Local().Body != nil {
		t.Errorf("Held = %v and Local = %q after both are forgotten", r.Held(), r.Local().Body)
	}
}
