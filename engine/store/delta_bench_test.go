package store

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/engine/delta"
	"github.com/minke-os/minke/internal/testenv"
)

// BenchmarkAddDelta makes the second version of a layer, 6,000 small files and 20
// large ones of which one in fifty has changed, from the first and a delta, and
// beside it from its gzipped tar, as a plain pull has it. Processor time is that
// of this process.
func BenchmarkAddDelta(b *testing.B) {
	var one, two []entry
	text := bytes.Repeat([]byte("a line that is much like others, but not the same\n"), 1<<16)
	for i := range 6000 {
		body := fmt.Sprint(i, string(text[i:i+12_000]))
		one = append(one, file(fmt.Sprint("f", i), body))
		if i%50 == 0 {
			body = "changed " + body
		}
		two = append(two, file(fmt.Sprint("f", i), body))
	}
	for i := range 20 {
		body := random(uint64(i), 4<<20)
		one = append(one, file(fmt.Sprint("big", i), body))
		if i == 0 {
			body = body[:1000] + "changed" + body[1000:]
		}
		two = append(two, file(fmt.Sprint("big", i), body))
	}
	oneTar, twoTar := tarOf(b, one...), tarOf(b, two...)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write(twoTar)
	must(b, z.Close())

	// The stores stay until all is measured: ext4 goes around the inodes of files
	// removed within the last minute, one by one, and that would be most of the time.
	all := b
	run := func(name string, do func(b *testing.B, s *Store, from Layer)) {
		b.Run(name, func(b *testing.B) {
			var spent time.Duration
			for range b.N {
				s := openAt(b, testenv.DiskDir(all), Options{})
				from := add(b, s, "", oneTar)
				release, err := s.Lease(from.ChainID)
				must(b, err)
				before := processorTime(b)
				do(b, s, from)
				spent += processorTime(b) - before
				release()
			}
			b.ReportMetric(spent.Seconds()*1000/float64(b.N), "cpu-ms/layer")
		})
	}
	var data []byte
	run("plain", func(b *testing.B, s *Store, from Layer) {
		r, err := gzip.NewReader(bytes.NewReader(packed.Bytes()))
		must(b, err)
		to, err := s.AddLayer(b.Context(), "", r)
		must(b, err)
		if data == nil {
			data = deltaOf(b, s, from, to)
		}
	})
	run("delta", func(b *testing.B, s *Store, from Layer) {
		d := readDelta(b, s, data)
		section := func(p delta.Section) io.Reader { return bytes.NewReader(data[p.Offset:][:p.Length]) }
		l, err := s.Loose()
		must(b, err)
		var a delta.Applier
		defer a.Close()
		for _, seg := range missing(b, d, l) {
			must(b, a.Apply(d, seg, section(seg.Section), func(c delta.Content) (delta.File, error) { return l.Open(c) }, l.Create))
		}
		_, err = s.AddDelta(b.Context(), "", d, section(d.Skeleton), l)
		must(b, err)
		must(b, l.Done())
	})
}

func processorTime(b *testing.B) time.Duration {
	var u unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
