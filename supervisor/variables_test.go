package supervisor_test

import (
	"strings"
	"testing"

	"github.com/minke-os/minke/supervisor"
)

func TestAVariableThatIsWrongIsSaidOnce(t *testing.T) {
	t.Parallel()
	const wrong = `"RESIN_SUPERVISOR_DELTA":"maybe","RESIN_SUPERVISOR_VPN_CONTROL":"perhaps","RESIN_HOST_FIREWALL_MODE":"shut","RESIN_SUPERVISOR_API_REQUEST_TIMEOUT":"soon"`
	m := manage(t, release("c1", "garden:1", "", `"RESIN_SUPERVISOR_DELTA":"off","RESIN_HOST_FIREWALL_MODE":""`), supervisor.Config{})
	said := func() (lines []string) {
		for _, l := range m.f.Lines() {
			if text, ok := strings.CutPrefix(l.Message, "Warning: Ignoring invalid device configuration value for "); ok {
				lines = append(lines, text)
			}
		}
		return lines
	}
	want := []string{
		`HOST_FIREWALL_MODE: "shut"; off is used`,
		`SUPERVISOR_API_REQUEST_TIMEOUT: "soon"; 59000 is used`,
		`SUPERVISOR_DELTA: "maybe"; false is used`,
		`SUPERVISOR_VPN_CONTROL: "perhaps"; true is used`,
		`SUPERVISOR_POLL_INTERVAL: "often"; 900000 is used`,
		`SUPERVISOR_POLL_INTERVAL: "5"; 1000 is used`,
		`SUPERVISOR_DELTA: "yes!"; false is used`,
	}
	for i, tt := range []struct {
		config string
		lines  int
	}{
		{wrong, 4},
		{wrong + `,"RESIN_SUPERVISOR_POLL_INTERVAL":"often"`, 5},
		{wrong + `,"RESIN_SUPERVISOR_POLL_INTERVAL":"5"`, 6},
		{strings.Replace(wrong, "maybe", "yes!", 1), 7},
	} {
		m.f.Wants(release("c1", "garden:1", "", tt.config+`,"RESIN_NOTED":"`+string(rune('a'+i))+`"`))
		m.update()
		m.until("people learn what is wrong", func() bool { return len(said()) >= tt.lines })
	}
	if got := said(); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("people are told\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
