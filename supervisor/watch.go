package supervisor

import (
	"context"
	"time"

	"github.com/minke-os/minke/supervisor/client"
)

// interesting are the engine's events after which the plan may differ. Health
// checks run commands all day, so exec events must not be among them.
var interesting = []string{
	"create", "start", "die", "stop", "destroy", "rename", "update", "pause", "unpause", "oom", "health_status",
	"connect", "disconnect", "remove", "tag", "untag", "delete", "pull", "load",
}

// watch pokes the loop when the engine reports something, and whenever it had
// to connect again and may have missed something.
func (s *Supervisor) watch(ctx context.Context) {
	filter := make(client.Filters).Add("type", "container", "network", "volume", "image").Add("event", interesting...)
	delay := time.Second
	for ctx.Err() == nil {
		started := time.Now()
		s.events(ctx, filter)
		if time.Since(started) > time.Minute {
			delay = time.Second
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
		delay = min(2*delay, 30*time.Second)
		s.poke()
	}
}

// events follows one event stream to its end.
func (s *Supervisor) events(ctx context.Context, filter client.Filters) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := s.cfg.Engine.Events(ctx, client.EventsListOptions{Filters: filter})
	for {
		select {
		case <-ctx.Done():
			return
		case <-stream.Err:
			return
		case _, ok := <-stream.Messages:
			if !ok {
				return
			}
			s.poke()
		}
	}
}
