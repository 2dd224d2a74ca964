package supervisor_test

import (
	"os"
	"strings"
	"testing"

	"github.com/minke-os/minke/internal/testbus"
	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/supervisor"
)

func TestAServiceStartsAfterTheRebootThatItAsksFor(t *testing.T) {
	testenv.NeedRoot(t) // update locks
	t.Parallel()
	bus, systemd := testbus.Start(t)
	m := manage(t, release("c1", "garden:1", "", ""), supervisor.Config{SystemBus: bus})
	again := func() { // minked
		m.stop()
		systemd.PartOf("") // forgets the calls
		m.restart()
	}
	waits := func() bool {
		_, text := m.call("GET", "/v2/state/status?apikey="+m.global, "")
		return systemd.Called("reboot false") && strings.Contains(text, "web: it starts after a reboot")
	}
	m.f.Wants(release("c2", "garden:2", `"io.balena.update.requires-reboot":"1"`, ""))
	m.update()
	m.until("it reboots", waits)
	if got := m.running(); got["web"] != "" || got["db"] != "garden:2" {
		t.Errorf("before the reboot %v run, want db and not web", got)
	}
	again()
	m.until("it reboots, when minked alone was started again", waits)
	if got := m.running(); got["web"] != "" {
		t.Errorf("before the reboot %v run, want no web", got)
	}
	m.stop()
	if err := os.RemoveAll(m.tmp); err != nil { // what a reboot does
		t.Fatal(err)
	}
	again()
	m.until("web runs after the reboot", func() bool { return m.running()["web"] == "garden:2" })
	m.is("POST", "/v2/applications/1/restart-service?apikey="+m.global, `{"serviceName":"web"}`, 200, "OK")
	if m.running()["web"] != "garden:2" || systemd.Called("reboot false") {
		t.Errorf("%v run and %v was called after a restart, want web without another reboot", m.running(), systemd.Calls())
	}
}
