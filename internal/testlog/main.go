// Command testlog reads what "go test -json" prints and shows what a person
// wants of it: a line for each package, all output of what failed, and at the
// end which tests were skipped and why, which go test shows only with all the
// rest. It exits with 1 if anything failed or nothing passed.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

// An event is one line, see "go doc test2json".
type event struct {
	Action, Package, ImportPath, Test, Output string
}

type results struct {
	output  map[string][]string // of a test, or of a package under its own name
	skipped map[string][]string // reason -> tests
	counts  map[string]int      // pass, fail, skip
}

func main() {
	r := results{output: map[string][]string{}, skipped: map[string][]string{}, counts: map[string]int{}}
	if err := r.read(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "testlog:", err)
		os.Exit(1)
	}
	r.summary(os.Stdout)
	// No test at all is a broken build that go told of on its own.
	if r.counts["fail"] > 0 || r.counts["pass"] == 0 {
		os.Exit(1)
	}
}

func (r *results) read(in io.Reader, out io.Writer) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var e event
		if json.Unmarshal(line, &e) != nil {
			fmt.Fprintf(out, "%s", line) // go's own words
			continue
		}
		r.take(e, out)
	}
}

func (r *results) take(e event, out io.Writer) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output":
		r.output[key] = append(r.output[key], e.Output)
		// The line that ends a package.
		if e.Test == "" && (strings.HasPrefix(e.Output, "ok ") || strings.HasPrefix(e.Output, "FAIL\t")) {
			fmt.Fprint(out, e.Output)
		}
	case "build-output":
		fmt.Fprint(out, e.Output)
	case "build-fail":
		r.counts["fail"]++
	case "pass", "fail", "skip":
		r.end(e, key, out)
	}
}

func (r *results) end(e event, key string, out io.Writer) {
	text := r.output[key]
	delete(r.output, key)
	if e.Test == "" {
		if e.Action == "fail" {
			fmt.Fprint(out, strings.Join(text, ""))
			r.counts["fail"]++
		}
		return
	}
	r.counts[e.Action]++
	switch e.Action {
	case "fail":
		fmt.Fprintf(out, "%s: %s", e.Package, strings.Join(text, ""))
	case "skip":
		why := reason(text)
		r.skipped[why] = append(r.skipped[why], e.Test)
	}
}

// place is where a test spoke: "    file_test.go:12: ".
var place = regexp.MustCompile(`^\s+\S+\.go:\d+: `)

func reason(text []string) string {
	for _, line := range text {
		if loc := place.FindStringIndex(line); loc != nil {
			return strings.TrimSpace(line[loc[1]:])
		}
	}
	return "no reason given"
}

func (r *results) summary(out io.Writer) {
	if len(r.skipped) > 0 {
		fmt.Fprintln(out, "\nSkipped:")
	}
	for _, why := range slices.Sorted(maps.Keys(r.skipped)) {
		tests := r.skipped[why]
		names := strings.Join(tests[:min(len(tests), 5)], ", ")
		if len(tests) > 5 {
			names += fmt.Sprintf(" and %d more", len(tests)-5)
		}
		fmt.Fprintf(out, "  %s\n    %s\n", why, names)
	}
	fmt.Fprintf(out, "\n%d passed, %d failed, %d skipped\n", r.counts["pass"], r.counts["fail"], r.counts["skip"])
}
