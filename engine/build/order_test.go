package build

import (
	"fmt"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
)

func TestStagesAreBuiltAtOnceAndHeardInOrder(t *testing.T) {
	b := newBench(t)
	if runtime.GOMAXPROCS(0) < 2 {
		t.Skip("one processor builds one stage after the other")
	}
	// Each of the two commands waits until the other runs.
	var both sync.WaitGroup
	both.Add(2)
	b.runner.look = func(spec RunSpec) {
		if strings.Contains(strings.Join(spec.Cmd, " "), "meet") {
			both.Done()
			both.Wait()
		}
	}
	img, out := b.mustBuild(Options{}, files{"Dockerfile": `FROM busybox AS one
RUN echo meet 1; echo 1 > /1
FROM one AS two
RUN echo two; echo 2 > /2
FROM busybox AS three
RUN echo meet 3; echo 3 > /3
FROM two
COPY --from=three /3 /
COPY --from=0 /1 /again
`})
	b.has(img, files{"1": "1\n", "2": "2\n", "3": "3\n", "again": "1\n"})
	var heard []string
	for _, m := range regexp.MustCompile(`(?m)^Step \d+/\d+|^meet \d|^two`).FindAllString(out, -1) {
		heard = append(heard, strings.TrimPrefix(m, "Step "))
	}
	want := "1/9 2/9 meet 1 3/9 4/9 two 5/9 6/9 meet 3 7/9 8/9 9/9"
	if got := strings.Join(heard, " "); got != want {
		t.Errorf("heard %s\nwant  %s\n%s", got, want, out)
	}
}

func TestFailureInAStageEndsTheOthers(t *testing.T) {
	b := newBench(t)
	_, out, err := b.build(Options{}, files{"Dockerfile": `FROM busybox
RUN sleep 600
FROM busybox
RUN echo oops; false
FROM scratch
COPY --from=1 / /
`})
	if err == nil || err.Error() != "The command '/bin/sh -c echo oops; false' returned a non-zero code: 1" || !strings.Contains(out, "oops\n") {
		t.Errorf("build = %v\n%s", err, out)
	}
}

func TestWhatIsSaidTooEarlyIsClipped(t *testing.T) {
	var out strings.Builder
	o := newOrder(2, &out)
	own, commands := o.voices(1, Output{Stdout: &out, Stderr: &out})
	fmt.Fprintln(own, "step")
	commands.Stdout.Write(make([]byte, maxAhead))
	fmt.Fprintln(commands.Stderr, "too much")
	fmt.Fprintln(own, "end")
	if out.Len() > 0 {
		t.Errorf("%d bytes are heard before their turn", out.Len())
	}
	o.end(0)
	fmt.Fprintln(commands.Stdout, "late")
	want := "step\n" + strings.Repeat("\x00", maxAhead) + "end\n[output clipped: 9 bytes more came while earlier stages were built]\nlate\n"
	if out.String() != want {
		t.Errorf("heard %d bytes that end with %q", out.Len(), out.String()[max(0, out.Len()-100):])
	}
}
