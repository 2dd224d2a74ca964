package plan

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/minke-os/minke/supervisor/model"
)

// A target of 10,000 services, each of which waits for the one before, is planned
// in a time that grows as the target does: the bound is far above what it takes,
// and far below what looking at each service for each other one would.
func TestAHugeTargetIsPlannedInTime(t *testing.T) {
	const services = 10_000
	began := time.Now()
	var b strings.Builder
	b.WriteString(`{"local":{"name":"d","config":{},"apps":{"1":{"name":"a","commit":"c","releaseId":"1","networks":{},"volumes":{},"services":{`)
	for i := range services {
		needs := ""
		if i > 0 {
			needs = fmt.Sprintf(`"s%d"`, i-1)
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `"%d":{"serviceName":"s%d","imageId":%[1]d,"image":"i","environment":{"A":"b"},"labels":{},"depends_on":[%[3]s]}`, i+1, i, needs)
	}
	b.WriteString(`}}}}}`)
	target, err := model.ParseLocal([]byte(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	app, err := model.Compose(target.Apps[0], model.Device{})
	if err != nil {
		t.Fatal(err)
	}
	cur := Current{Images: map[string]string{"i": "sha256:i"}, Networks: []Network{{Name: model.SupervisorNetwork, Right: true}}}
	for _, s := range app.Services[:services/2] {
		cur.Containers = append(cur.Containers, Container{ID: s.Name, Name: s.Name, App: 1, Service: s.Service, ImageID: "sha256:i", State: "running", Started: true, Print: s.Print, Created: epoch})
	}
	steps := Next(Want{Apps: []model.AppSpec{app}}, cur, Facts{Locked: map[model.AppID]bool{1: true}})
	if len(steps) == 0 {
		t.Error("there is nothing to do")
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("%d services took %v", services, took)
	} else {
		t.Logf("%d services took %v, %d steps", services, took, len(steps))
	}
}
