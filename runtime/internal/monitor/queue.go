package monitor

import (
	"bytes"
	"sync"

	"github.com/minke-os/minke/runtime/jsonlog"
)

// queue is what lies between a container and its log where the container is
// not to wait for it (log option mode=non-blocking): a bounded number of bytes,
// written by one goroutine. What does not fit is dropped, as in Docker the
// newest. What waits is lost with the monitor.
type queue struct {
	limit int
	done  chan struct{} // closed when all is written after finish

	mu       sync.Mutex
	some     sync.Cond
	items    []queued
	size     int
	dropped  int64 // bytes
	finished bool
}

type queued struct {
	to   *jsonlog.Stream
	data []byte // nil: the end of the stream
}

func newQueue(limit int) *queue {
	q := &queue{limit: limit, done: make(chan struct{})}
	q.some.L = &q.mu
	go q.run()
	return q
}

// put takes over a copy of p, or drops it.
func (q *queue) put(to *jsonlog.Stream, p []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.size > 0 && q.size+len(p) > q.limit {
		q.dropped += int64(len(p))
		return
	}
	q.size += len(p)
	q.items = append(q.items, queued{to, bytes.Clone(p)})
	q.some.Signal()
}

// flush has the stream's unfinished line written after all that was put.
func (q *queue) flush(to *jsonlog.Stream) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.items = append(q.items, queued{to: to})
	q.some.Signal()
}

// finish waits until what was put is written. Nothing may be put after.
func (q *queue) finish() {
	if q == nil {
		return
	}
	q.mu.Lock()
	q.finished = true
	q.some.Signal()
	q.mu.Unlock()
	<-q.done
}

func (q *queue) run() {
	defer close(q.done)
	for {
		items := q.take()
		if items == nil {
			return
		}
		for _, it := range items {
			if it.data == nil {
				it.to.Flush()
				continue
			}
			it.to.Write(it.data)
			q.mu.Lock()
			q.size -= len(it.data) // not before: what is being written is in memory, too
			q.mu.Unlock()
		}
	}
}

// take waits for output; nil is the end.
func (q *queue) take() []queued {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.items) == 0 && !q.finished {
		q.some.Wait()
	}
	items := q.items
	q.items = nil
	return items
}
