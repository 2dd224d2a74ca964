package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A sample is what one operation took, in milliseconds.
type sample struct {
	Wall   float64 `json:"wall"`
	CPU    float64 `json:"cpu"`    // of client, daemons and containers
	Engine float64 `json:"engine"` // the same without the client
}

type memory struct {
	When      string `json:"when"`
	KB        int    `json:"kB"`
	Processes string `json:"processes"`
}

// A result is all figures of a comparison, as kept in a file.
type result struct {
	When     time.Time                      `json:"when"`
	Machine  string                         `json:"machine"`
	Rounds   int                            `json:"rounds"`
	Batch    int                            `json:"batch"`
	CLI      string                         `json:"cli"`
	Engines  []string                       `json:"engines"`
	Versions map[string]string              `json:"versions"`
	Samples  map[string]map[string][]sample `json:"samples"` // by case and engine
	Memory   map[string][]memory            `json:"memory"`
	Sizes    map[string]map[string]int64    `json:"sizes"`  // of programs in bytes
	Health   map[string]float64             `json:"health"` // per cent of a processor, of a check every second
}

func newResult(r *runner) *result {
	var u unix.Utsname
	unix.Uname(&u)
	res := &result{
		When: time.Now().UTC(), Rounds: r.rounds, Batch: r.batch, CLI: versionOf(r.cli),
		Machine:  fmt.Sprintf("%s, %d processors, Linux %s", runtime.GOARCH, runtime.NumCPU(), unix.ByteSliceToString(u.Release[:])),
		Versions: map[string]string{}, Samples: map[string]map[string][]sample{}, Memory: map[string][]memory{}, Sizes: map[string]map[string]int64{}, Health: map[string]float64{},
	}
	for _, e := range r.engines {
		res.Engines = append(res.Engines, e.name)
		res.Versions[e.name] = e.version
		res.Sizes[e.name] = map[string]int64{}
		for _, path := range e.programs {
			if fi, err := os.Stat(path); err == nil {
				res.Sizes[e.name][filepath.Base(path)] = fi.Size()
			}
		}
	}
	return res
}

func (r *result) add(name, engine string, s sample) {
	if r.Samples[name] == nil {
		r.Samples[name] = map[string][]sample{}
	}
	r.Samples[name][engine] = append(r.Samples[name][engine], s)
}

func (r *result) save(dir string) error { return keep(dir, r.When, "", r) }

// keep writes figures into a file that is named after the time.
func keep(dir string, when time.Time, suffix string, figures any) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(figures, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, when.Format("20060102-150405")+suffix+".json"), data, 0o644)
}

// reprint prints what was saved.
func reprint(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var r result
	if err := json.Unmarshal(data, &r); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return r.print(os.Stdout)
}

// median is that of one figure of a case's samples.
func (r *result) median(name, engine string, of func(sample) float64) (float64, bool) {
	all := r.Samples[name][engine]
	if len(all) == 0 {
		return 0, false
	}
	var v []float64
	for _, s := range all {
		v = append(v, of(s))
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2, true
}

// typedThere is what a person types instead where there is no minke CLI.
var typedThere = map[string]string{caseOwnRun: caseRun, caseOwnExec: caseExec}

// print writes the tables, in Markdown: ratios first, then what they are of.
func (r *result) print(w io.Writer) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s; %s; medians of %d rounds of %d; CLI: %s.\n\n", r.When.Format(time.DateOnly), r.Machine, r.Rounds, r.Batch, r.CLI)
	for _, e := range r.Engines {
		fmt.Fprintf(&b, "- %s: %s\n", e, r.Versions[e])
	}
	figures := []struct {
		name string
		of   func(sample) float64
	}{
		{"time", func(s sample) float64 { return s.Wall }},
		{"processor", func(s sample) float64 { return s.CPU }},
		{"processor, client apart", func(s sample) float64 { return s.Engine }},
	}
	head := []string{"case, milliseconds", "figure"}
	for _, e := range r.Engines {
		if e != "minke" {
			head = append(head, "of "+e+"'s")
		}
	}
	table(&b, append(head, r.Engines...))
	for _, name := range cases {
		for _, f := range figures {
			if f.name == "processor, client apart" && strings.HasPrefix(name, "API") {
				continue // the client is the bench itself, which is not counted
			}
			r.row(&b, name, f.name, func(e string) (float64, bool) {
				if typed, own := typedThere[name]; own && e != "minke" {
					return r.median(typed, e, f.of)
				}
				return r.median(name, e, f.of)
			})
		}
	}
	head[0] = "memory (PSS), MB"
	table(&b, append(head, r.Engines...))
	for _, when := range []string{"idle", "ten containers"} {
		r.row(&b, "daemons and shims", when, func(e string) (float64, bool) {
			i := slices.IndexFunc(r.Memory[e], func(m memory) bool { return m.When == when })
			if i < 0 {
				return 0, false
			}
			return float64(r.Memory[e][i].KB) / 1024, true
		})
	}
	head[0] = "health check every second, per cent of a processor"
	table(&b, append(head, r.Engines...))
	r.row(&b, "the check with it", "processor", func(e string) (float64, bool) { v, ok := r.Health[e]; return v, ok })
	head[0] = "programs, MB"
	table(&b, append(head, r.Engines...))
	r.row(&b, "size on disk", "all", func(e string) (float64, bool) {
		var sum int64
		for _, n := range r.Sizes[e] {
			sum += n
		}
		return float64(sum) / (1 << 20), true
	})
	_, err := w.Write(b.Bytes())
	return err
}

func table(b *bytes.Buffer, head []string) {
	fmt.Fprintf(b, "\n| %s |\n|---|---%s\n", strings.Join(head, " | "), strings.Repeat("|---:", len(head)-2)+"|")
}

// row prints minke's share of the others' figures, and the figures.
func (r *result) row(b *bytes.Buffer, name, figure string, of func(engine string) (float64, bool)) {
	ours, ok := of("minke")
	var ratios, values []string
	for _, e := range r.Engines {
		v, there := of(e)
		text := "–"
		if there {
			text = fmt.Sprintf("%.1f", v)
		}
		values = append(values, text)
		if e == "minke" {
			continue
		}
		text = "–"
		if ok && there && v > 0 {
			text = fmt.Sprintf("**%.2f**", ours/v)
		}
		ratios = append(ratios, text)
	}
	fmt.Fprintf(b, "| %s | %s | %s |\n", name, figure, strings.Join(append(ratios, values...), " | "))
}
