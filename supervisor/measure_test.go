package supervisor_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minke-os/minke/internal/testdaemon"
	"github.com/minke-os/minke/supervisor/client"
)

// thirteen is a release of as many services; changed of them differ from the
// first release.
func thirteen(commit string, changed int) string {
	var services []string
	for i := range 13 {
		value := "same"
		if i < changed {
			value = commit
		}
		services = append(services, fmt.Sprintf(`"%d":{"serviceName":"s%[1]d","serviceId":%[1]d,"imageId":%[1]d,"image":"%s","environment":{"V":"%s"},"labels":{},"command":"sh -c 'trap \"exit 0\" TERM; while :; do sleep 0.1; done'","tty":false}`,
			i+1, testImage, value))
	}
	return `{"local":{"name":"bench","config":{"SUPERVISOR_LOCAL_MODE":"1"},"apps":{"1":{"name":"localapp","commit":"` + commit + `","releaseId":"7","services":{` + strings.Join(services, ",") + `},"volumes":{},"networks":{}}}}}`
}

// The time is told, not judged, for tests share the machine; on an idle one it is
// to be under two seconds.
func TestAReleaseTouchesWhatChanged(t *testing.T) {
	daemon := testdaemon.Start(t)
	buildTestImage(t, daemon.Client)
	engine := engineAt(t, daemon.Client.DaemonHost())
	d := start(t, engine, t.TempDir(), t.TempDir())
	defer d.stop()
	defer d.apply(empty)

	first := d.apply(thirteen("one", 0))
	began := time.Now()
	second := d.apply(thirteen("two", 2))
	t.Logf("13 services of which 2 changed: %v from the target to its end", time.Since(began))
	var touched []string
	for name, id := range second {
		if first[name] != id {
			touched = append(touched, name)
		}
	}
	if slices.Sort(touched); len(second) != 13 || !slices.Equal(touched, []string{"s1", "s2"}) {
		t.Errorf("%d services, touched are %v; want 13 and s1, s2", len(second), touched)
	}

	engine.NetworkRemove(t.Context(), "supervisor0", client.NetworkRemoveOptions{})
}
