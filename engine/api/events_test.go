package api

import (
	"testing"

	"github.com/moby/moby/api/types/events"

	"github.com/minke-os/minke/engine"
)

func TestEventsOfAnImageAreFoundByItsName(t *testing.T) {
	started := events.Message{Type: events.ContainerEventType, Action: events.ActionStart, Actor: events.Actor{ID: "0123", Attributes: map[string]string{"image": "base:1", "name": "web"}}}
	tagged := events.Message{Type: events.ImageEventType, Action: events.ActionTag, Actor: events.Actor{ID: "sha256:4567", Attributes: map[string]string{"name": "shop/base:2"}}}
	made := events.Message{Type: events.NetworkEventType, Action: events.ActionCreate, Actor: events.Actor{ID: "base", Attributes: map[string]string{"name": "net"}}}
	for _, tt := range []struct {
		image string
		m     events.Message
		want  bool
	}{
		{"base:1", started, true}, {"base", started, true}, {"base:2", started, false}, {"web", started, false},
		{"shop/base", tagged, true}, {"shop/base:2", tagged, true}, {"sha256:4567", tagged, true}, {"base", tagged, false},
		{"net", made, false},
	} {
		if got := wanted(engine.Filters{"image": {tt.image}}, tt.m); got != tt.want {
			t.Errorf("image=%s has %s of %s: %v, want %v", tt.image, tt.m.Action, tt.m.Actor.ID, got, tt.want)
		}
	}
}
