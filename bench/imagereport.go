package main

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/minke-os/minke/bench/pairs"
)

// An imageSample is what one command took and left.
type imageSample struct {
	Wall    float64 `json:"wall"`    // seconds
	CPU     float64 `json:"cpu"`     // seconds, of client and daemons
	Written float64 `json:"written"` // MB that went to the disk, the file system's own with it
	Late    float64 `json:"late"`    // MB of these that were still to be written when it returned
	Added   float64 `json:"added"`   // MB in use on the disk, more than before
	Peak    float64 `json:"peak"`    // MB, most resident memory of the daemons, or of the client if there are none
}

type imageResult struct {
	result
	Pairs  []pairs.Pair                        `json:"pairs"`
	Images map[string]map[string][]imageSample `json:"images"` // by case and engine
	order  []string
}

func newImageResult(r *runner, made []pairs.Pair) *imageResult {
	return &imageResult{result: *newResult(r), Pairs: made, Images: map[string]map[string][]imageSample{}}
}

func (r *imageResult) add(name, engine string, s imageSample) {
	if r.Images[name] == nil {
		r.Images[name] = map[string][]imageSample{}
		r.order = append(r.order, name)
	}
	r.Images[name][engine] = append(r.Images[name][engine], s)
}

func (r *imageResult) save(dir string) error { return keep(dir, r.When, "-images", r) }

func (r *imageResult) middle(name, engine string, of func(imageSample) float64) (float64, bool) {
	var v []float64
	for _, s := range r.Images[name][engine] {
		v = append(v, of(s))
	}
	if len(v) == 0 {
		return 0, false
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2, true
}

func (r *imageResult) print(w io.Writer) error {
	r.Engines = slices.DeleteFunc(r.Engines, func(name string) bool { return name == "filler" })
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s; %s; medians of %d rounds; CLI: %s.\n\n", r.When.Format(time.DateOnly), r.Machine, r.Rounds, r.CLI)
	for _, e := range r.Engines {
		fmt.Fprintf(&b, "- %s: %s\n", e, r.Versions[e])
	}
	fmt.Fprintf(&b, "\n| pair | second version | content new in it, MB |\n|---|---|---:|\n")
	for _, p := range r.Pairs {
		fmt.Fprintf(&b, "| %s | %s | %.1f |\n", p.Name, p.What, float64(p.Fresh)/1e6)
	}
	r.figures(&b)
	_, err := w.Write(b.Bytes())
	return err
}

// figures writes a table for each; the first engine is compared with the others.
func (r *imageResult) figures(b *bytes.Buffer) {
	for _, f := range []struct {
		name string
		of   func(imageSample) float64
	}{
		{"disk added, MB", func(s imageSample) float64 { return s.Added }},
		{"written, MB", func(s imageSample) float64 { return s.Written }},
		{"still to be written at the end, MB", func(s imageSample) float64 { return s.Late }},
		{"time, s", func(s imageSample) float64 { return s.Wall }},
		{"processor, s", func(s imageSample) float64 { return s.CPU }},
		{"peak memory, MB", func(s imageSample) float64 { return s.Peak }},
	} {
		head := []string{"case", "figure"}
		for _, e := range r.Engines {
			if e != "minke" {
				head = append(head, "of "+e+"'s")
			}
		}
		table(b, append(head, r.Engines...))
		for _, name := range r.order {
			r.row(b, name, f.name, func(e string) (float64, bool) { return r.middle(name, e, f.of) })
		}
	}
}
