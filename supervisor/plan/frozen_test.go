package plan

import (
	"testing"

	"github.com/minke-os/minke/supervisor/model"
)

func TestNothingIsDoneToAFrozenApplication(t *testing.T) {
	want := Want{Apps: []model.AppSpec{{ID: 1, Frozen: true}}}
	cur := has(running("web"), running("db", func(c *Container) { c.State = "exited" }))
	cur.Networks = append(cur.Networks, Network{Name: "u_default", App: 1})
	cur.Volumes = []Volume{{Name: "1_data", App: 1}}
	if got := Next(want, cur, Facts{}); len(got) != 0 {
		t.Errorf("Next = %v, want nothing", got)
	}
	got := Next(want, cur, Facts{Locked: map[model.AppID]bool{1: true}})
	if len(got) != 1 || got[0].Kind != ReleaseLock {
		t.Errorf("Next = %v while its lock is held, want it released", got)
	}
}
