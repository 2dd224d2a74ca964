package minke

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// linked says what a program may not have in it, and why. A path that ends in
// "/..." stands for all below it. What is needed only in tests is not in it.
var linked = []struct {
	program string
	never   []string
	why     string
}{
	{"minked", []string{"google.golang.org/protobuf/...", "github.com/moby/buildkit/frontend/dockerfile/parser"}, "protobuf is 1.5 MB; Dockerfiles are read by engine/build/dockerfile"},
	{"minked", []string{"go.opentelemetry.io/...", "github.com/moby/moby/client"}, "OpenTelemetry is half a megabyte; the supervisor's requests are made by supervisor/client"},
	{"minked", []string{"github.com/distribution/reference"}, "it compiles its regular expressions at every start, 400 kB; use oci.ParseReference"},
	{"minked", []string{"text/template", "html/template", "github.com/spf13/cobra"}, "who looks methods up by name keeps all methods of all types in the program; the daemon has nothing to render"},
	{"minked", []string{"github.com/compose-spec/..."}, "compose files are read by who has them, the command line"},
	{"minke-runtime", []string{"crypto/...", "net", "net/http", "regexp", "log/slog", "text/template"}, "it is in memory as long as a container runs, and started for each; the FIPS module alone is 150 kB"},
}

func TestWhatProgramsLink(t *testing.T) {
	for _, l := range linked {
		out, err := exec.Command("go", "list", "-deps", "./cmd/"+l.program).Output()
		if err != nil {
			t.Fatal(err)
		}
		for path := range strings.Lines(string(out)) {
			if path = strings.TrimSpace(path); matches(l.never, path) {
				t.Errorf("%s links %s: %s; go mod why shows who imports it", l.program, path, l.why)
			}
		}
	}
}

// sizes are bytes on amd64, a hundredth above what the programs have. A device
// has each of them in memory as far as it runs.
var sizes = map[string]int64{
	"minked":        15_900_000,
	"minke-runtime": 3_900_000,
	"minke":         13_400_000,
}

func TestProgramsStaySmall(t *testing.T) {
	if testing.Short() || runtime.GOARCH != "amd64" {
		t.Skip("builds the programs, for amd64")
	}
	dir := t.TempDir()
	if out, err := exec.Command("make", "-s", "build", "BIN="+dir).CombinedOutput(); err != nil {
		t.Fatalf("make build: %v\n%s", err, out)
	}
	for program, limit := range sizes {
		fi, err := os.Stat(filepath.Join(dir, program))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d bytes", program, fi.Size())
		if fi.Size() > limit {
			t.Errorf("%s has %d bytes, more than %d: docs/size.md says how to find what they are", program, fi.Size(), limit)
		}
	}
}
