//go:build linux

package powercut

import (
	"fmt"
	"io"
	"math/rand/v2"
)

// An event is one thing that a disk was told.
type event struct {
	flush bool
	off   int64
	data  []byte
}

// A Log is what a disk was told, in order.
type Log struct {
	size   int64
	events []event
}

// Len is the number of moments in the log.
func (l Log) Len() int { return len(l.events) }

// Written is the number of bytes that were written between two moments, and
// Flushes that of flushes.
func (l Log) Written(from, to int) (n int64) {
	for _, e := range l.events[from:to] {
		n += int64(len(e.data))
	}
	return n
}

func (l Log) Flushes(from, to int) (n int) {
	for _, e := range l.events[from:to] {
		if e.flush {
			n++
		}
	}
	return n
}

// A Fate is what became of the writes that were not flushed.
type Fate int

const (
	Dropped Fate = iota // all lost
	Kept                // all done
	Some                // some done, in any order
	Torn                // some done, and of some only a few sectors
	fates
)

func (f Fate) String() string { return [...]string{"dropped", "kept", "some", "torn"}[f] }

// A Cut is a moment and what became of the writes in flight. The same cut of
// the same log always gives the same disk.
type Cut struct {
	At   int
	Fate Fate
	Unit int // the size of a sector: 512 or 4096
	Seed uint64
}

func (c Cut) String() string {
	return fmt.Sprintf("cut at %d, what was in flight %s, sectors of %d, seed %d", c.At, c.Fate, c.Unit, c.Seed)
}

// RandomCut chooses a cut between two moments.
func RandomCut(r *rand.Rand, from, to int) Cut {
	return Cut{At: from + r.IntN(to-from+1), Fate: Fate(r.IntN(int(fates))), Unit: []int{512, 4096}[r.IntN(2)], Seed: r.Uint64()}
}

// Write writes the disk as the cut leaves it to a file of zeros.
func (l Log) Write(w io.WriterAt, c Cut) error {
	r := rand.New(rand.NewPCG(c.Seed, 1))
	flushed := 0
	for i, e := range l.events[:c.At] {
		if e.flush {
			flushed = i
		}
	}
	for _, e := range l.events[:flushed] {
		if _, err := w.WriteAt(e.data, e.off); err != nil {
			return err
		}
	}
	flying := append([]event(nil), l.events[flushed:c.At]...)
	if c.Fate == Some || c.Fate == Torn {
		r.Shuffle(len(flying), func(i, j int) { flying[i], flying[j] = flying[j], flying[i] })
	}
	for _, e := range flying {
		for _, part := range c.survivors(r, e) {
			if _, err := w.WriteAt(part.data, part.off); err != nil {
				return err
			}
		}
	}
	return nil
}

// survivors are the parts of a write in flight that reached the disk.
func (c Cut) survivors(r *rand.Rand, e event) []event {
	switch {
	case c.Fate == Dropped || c.Fate != Kept && r.IntN(2) == 0:
		return nil
	case c.Fate != Torn || r.IntN(4) > 0:
		return []event{e}
	}
	var parts []event
	for at := 0; at < len(e.data); at += c.Unit {
		if r.IntN(2) == 0 {
			parts = append(parts, event{off: e.off + int64(at), data: e.data[at:min(at+c.Unit, len(e.data))]})
		}
	}
	return parts
}
