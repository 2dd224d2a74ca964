// Package events tells everyone who listens what happens in the engine.
//
// A Broker keeps the last events, so that a listener who asks for the past
// gets it, and hands each new one to every listener in order. A listener that
// does not read is dropped, never waited for: publishing never blocks.
package events

import (
	"sync"
	"time"

	"github.com/moby/moby/api/types/events"
)

const (
	kept   = 256 // events that `docker events --since` can look back on, as many as Docker keeps
	queued = 512 // events a listener may be behind before it is dropped
)

// A Broker's methods may be called from many goroutines. The zero value works.
type Broker struct {
	mu        sync.Mutex
	past      []events.Message // oldest first, at most kept
	listeners map[chan events.Message]struct{}
}

// Publish hands out an event that happened now.
func (b *Broker) Publish(t events.Type, a events.Action, id string, attributes map[string]string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now() // under the lock, so that times are in order
	m := events.Message{
		Type: t, Action: a, Scope: "local",
		Actor: events.Actor{ID: id, Attributes: attributes},
		Time:  now.Unix(), TimeNano: now.UnixNano(),
	}
	if len(b.past) == kept {
		b.past = append(b.past[:0], b.past[1:]...)
	}
	b.past = append(b.past, m)
	for ch := range b.listeners {
		select {
		case ch <- m:
		default:
			delete(b.listeners, ch)
			close(ch)
		}
	}
}

// Listen returns the events still kept and a channel of those that follow
// without a gap. The channel is closed when the listener falls behind. Call
// stop when done.
func (b *Broker) Listen() (past []events.Message, next <-chan events.Message, stop func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ch := make(chan events.Message, queued)
	if b.listeners == nil {
		b.listeners = map[chan events.Message]struct{}{}
	}
	b.listeners[ch] = struct{}{}
	return append(past, b.past...), ch, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if _, ok := b.listeners[ch]; ok {
			delete(b.listeners, ch)
			close(ch)
		}
	}
}

// Listeners is the number of those who listen now.
func (b *Broker) Listeners() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.listeners)
}
