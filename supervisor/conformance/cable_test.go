package conformance

import (
	"cmp"
	"fmt"
	"os"
	"testing"
	"time"
)

// TestTheCableIsOut takes it out for as long as MINKE_TEST_CABLE says, or for
// longer than connections live on that are dead. How often what is tried in an
// hour is looked at in supervisor/cloud, on a clock that is made up.
func TestTheCableIsOut(t *testing.T) {
	t.Parallel()
	out, err := time.ParseDuration(cmp.Or(os.Getenv("MINKE_TEST_CABLE"), "18s"))
	if err != nil {
		t.Fatal(err)
	}
	talking := func(commit string) string {
		return target(nil, fleetApp(commit, func(a *app) {
			a.services["talker"] = service(95, "garden:1", obj{"stop_grace_period": "0s",
				"command": []string{"sh", "-c", "i=0; while sleep 0.2; do i=$((i+1)); echo line $i.; done"}})
		}))
	}
	d := start(t, setup{managed: true, cable: true, wants: talking("a1")})
	defer d.empty()
	d.settled("a1")
	d.until("lines come", func() bool { return d.fleet.Heard("line 3.") })

	d.plug(false)
	d.wants(talking("a2"))
	d.is("POST", "/v1/update", `{}`, 204, "") // the poll fails
	d.is("POST", "/v2/applications/1234/restart-service", `{"serviceName":"db"}`, 200, "OK")
	time.Sleep(out)
	for _, s := range []string{"talker", "web", "db"} {
		if got := d.state(s); got != "running" {
			t.Errorf("without a network %s is %s", s, got)
		}
	}
	d.plug(true)

	last := int(out.Seconds()*4) + 10 // surely said by now, or soon
	d.until("what is said now comes", func() bool { return d.fleet.Heard(fmt.Sprintf("line %d.", last)) })
	heard, lost := map[string]int{}, 0
	for _, l := range d.fleet.Lines() {
		heard[l.Message]++
	}
	for n := range last {
		if heard[fmt.Sprintf("line %d.", n+1)] == 0 {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d lines are lost", lost, last)
	}
	d.until("the new release is reported", func() bool { return d.fleet.Reported("apps", "deadbeef01", "release_uuid") == "a2" })
}
