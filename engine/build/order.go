package build

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"github.com/minke-os/minke/oci"
)

// maxAhead bounds, in bytes, what of a stage's commands is kept until its turn.
// To let them wait instead would make the stages depend on each other.
const maxAhead = 1 << 20

// An order lets stages talk at once and be heard one after the other: what a
// stage says while an earlier one is not at its end comes when it is.
type order struct {
	mu      sync.Mutex // held while something is written to the client, too
	notes   io.Writer
	current int
	stages  []waiting
}

type waiting struct {
	said    []func()
	size    int // of what may be clipped
	clipped int // bytes that are left out
	ended   bool
}

func newOrder(stages int, notes io.Writer) *order {
	return &order{notes: notes, stages: make([]waiting, stages)}
}

// say calls f when it is the stage's turn.
func (o *order) say(stage int, f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if stage == o.current {
		f()
		return
	}
	o.stages[stage].said = append(o.stages[stage].said, f)
}

// clip reports whether a stage has said too much before its turn to say size
// bytes more.
func (o *order) clip(stage, size int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := &o.stages[stage]
	if stage == o.current || w.size+size <= maxAhead {
		w.size += size
		return false
	}
	w.clipped += size
	return true
}

// end gives the turn to the next.
func (o *order) end(stage int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stages[stage].ended = true
	for o.current < len(o.stages) && o.stages[o.current].ended {
		if o.current++; o.current == len(o.stages) {
			return
		}
		next := &o.stages[o.current]
		for _, f := range next.said {
			f()
		}
		next.said = nil
		if next.clipped > 0 {
			fmt.Fprintf(o.notes, "[output clipped: %d bytes more came while earlier stages were built]\n", next.clipped)
		}
	}
}

// A voice writes when it is the stage's turn. To a client that has left it
// writes in vain; the build ends by its context.
type voice struct {
	order *order
	stage int
	to    io.Writer
	must  bool // nothing is clipped
}

func (v voice) Write(p []byte) (int, error) {
	if !v.must && v.order.clip(v.stage, len(p)) {
		return len(p), nil
	}
	p = bytes.Clone(p)
	v.order.say(v.stage, func() { v.to.Write(p) })
	return len(p), nil
}

// voices are the stage's: what it says itself, and its commands.
func (o *order) voices(stage int, to Output) (own io.Writer, commands Output) {
	own = voice{o, stage, to.Stdout, true}
	commands = Output{Stdout: voice{o, stage, to.Stdout, false}, Stderr: voice{o, stage, to.Stderr, false}}
	if to.ImageID != nil {
		commands.ImageID = func(id oci.ImageID) { o.say(stage, func() { to.ImageID(id) }) }
	}
	return own, commands
}
