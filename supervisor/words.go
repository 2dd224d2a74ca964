package supervisor

import (
	"fmt"
	"strings"

	"github.com/minke-os/minke/supervisor/apply"
	"github.com/minke-os/minke/supervisor/plan"
)

// messages are the log lines before and after a step, in the words that
// dashboards know.
func messages(st plan.Step, r apply.Round) (before, after string) {
	image := ""
	for _, app := range r.Want.Apps {
		for _, svc := range app.Services {
			if app.ID == st.App && svc.Service == st.Service {
				image = " " + short(svc.Image)
			}
		}
	}
	service := fmt.Sprintf(" '%s%s'", st.Service, image)
	object := fmt.Sprintf(" '%s'", st.Object)
	switch st.Kind {
	case plan.Kill, plan.Stop:
		return "Killing service" + service, "Killed service" + service
	case plan.Create:
		return "Installing service" + service, "Installed service" + service
	case plan.Start:
		return "Starting service" + service, "Started service" + service
	case plan.CreateNetwork:
		return "Creating network" + object, ""
	case plan.RemoveNetwork:
		return "Removing network" + object, ""
	case plan.CreateVolume:
		return "Creating volume" + object, ""
	case plan.RemoveVolume:
		return "Removing volume" + object, ""
	case plan.TakeLock:
		return "Taking update locks", ""
	case plan.ReleaseLock:
		return "Releasing update locks", ""
	}
	return "", ""
}

// short is an image as people read it: of an ID, as built images are named by,
// no more than tells it from others.
func short(image string) string {
	const prefix, enough = "sha256:", 12
	if id, ok := strings.CutPrefix(image, prefix); ok && len(id) > enough {
		return prefix + id[:enough]
	}
	return image
}
