package events

import (
	"strconv"
	"testing"

	"github.com/moby/moby/api/types/events"
)

func publish(b *Broker, from, to int) {
	for i := from; i < to; i++ {
		b.Publish(events.ContainerEventType, events.ActionStart, strconv.Itoa(i), nil)
	}
}

func TestPastAndNextJoinWithoutGap(t *testing.T) {
	var b Broker
	publish(&b, 0, kept+10)
	past, next, stop := b.Listen()
	defer stop()
	publish(&b, kept+10, kept+12)
	if len(past) != kept || past[0].Actor.ID != "10" {
		t.Fatalf("past has %d events from %s, want %d from 10", len(past), past[0].Actor.ID, kept)
	}
	for want := kept + 10; want < kept+12; want++ {
		if m := <-next; m.Actor.ID != strconv.Itoa(want) {
			t.Errorf("next event is %s, want %d", m.Actor.ID, want)
		}
	}
}

func TestListenerThatDoesNotReadIsDropped(t *testing.T) {
	var b Broker
	_, next, stop := b.Listen()
	defer stop()
	publish(&b, 0, queued+2) // would block for ever if the listener were waited for
	n := 0
	for range next {
		n++
	}
	if n != queued || b.Listeners() != 0 {
		t.Errorf("got %d events and %d listeners are left, want %d and 0", n, b.Listeners(), queued)
	}
}
