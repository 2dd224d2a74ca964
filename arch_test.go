package minke

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/minke-os/minke/"

// rules say what a package may not import, and why. A path that ends in "/..."
// stands for all below it. Only non-test code counts.
var rules = []struct {
	packages []string
	never    []string
	except   []string
	why      string
}{
	{
		packages: []string{"oci", "engine/delta", "engine/build/dockerfile", "supervisor/plan", "supervisor/contract", "supervisor/appsjson"},
		never:    []string{"os", "os/exec", "net", "net/http", "io/fs"},
		why:      "it is pure: it does no I/O and reads no clock, so that tests are tables; pass facts in",
	},
	{
		packages: []string{"engine/api"},
		never:    []string{"github.com/vishvananda/...", "github.com/google/nftables/...", "os/exec", "golang.org/x/sys/unix", module + "engine/internal/...", module + "runtime/..."},
		why:      "handlers decode, call and encode; what happens belongs to package engine, behind the interfaces in engine/api/engine.go",
	},
	{
		packages: []string{"engine/internal/..."},
		never:    []string{module + "engine/...", module + "supervisor/..."},
		why:      "parts of the engine do not know each other or the store; package engine puts them together",
	},
	{
		packages: []string{"engine/store/...", "engine/build/...", "engine/archive/...", "engine/registry/..."},
		never:    []string{module + "engine/internal/...", module + "runtime/...", module + "engine"},
		why:      "images are usable without an engine; declare the small interface that is needed",
	},
	{
		packages: []string{"engine/..."},
		never:    []string{module + "supervisor/...", module + "cli/...", module + "compose/..."},
		why:      "the engine works without a supervisor (--supervisor=false) and never knows who asks",
	},
	{
		packages: []string{"supervisor/..."},
		never:    []string{module + "engine/...", module + "runtime/...", "github.com/compose-spec/..."},
		why:      "the supervisor knows the engine only as a Docker API client, so it can supervise a stock Docker",
	},
	{
		packages: []string{"runtime/..."},
		never:    []string{module + "engine/...", module + "supervisor/...", module + "cli/...", "net/http", "github.com/moby/moby/..."},
		why:      "minke-runtime is small and works under other engines",
	},
	{
		packages: []string{"compose/...", "cli/..."},
		never:    []string{module + "engine/...", module + "runtime/..."},
		why:      "clients talk to daemons over their APIs",
	},
	{
		packages: []string{"..."},
		never:    []string{module + "cmd/..."},
		why:      "cmd is wiring; nobody imports it",
	},
	{
		packages: []string{"..."},
		never:    []string{module + "internal/powercut"},
		why:      "the recording disk, and with it a FUSE library, is for tests; no program links it",
	},
}

type listed struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports", "./...")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var all []listed
	for dec := json.NewDecoder(out); ; {
		var p listed
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return all
}

func matches(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if prefix, ok := strings.CutSuffix(p, "..."); ok {
			return strings.HasPrefix(path+"/", prefix)
		}
		return p == path
	})
}

func TestImportRules(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		for _, r := range rules {
			if !matches(r.packages, name) {
				continue
			}
			for _, imp := range p.Imports {
				own := strings.HasPrefix(imp+"/", p.ImportPath+"/") // its own subpackages
				if matches(r.never, imp) && !own && !matches(r.except, imp) {
					t.Errorf("%s imports %s: %s", name, imp, r.why)
				}
			}
		}
	}
}

// TestPurePackagesReadNoClock lets them have durations, but not the time of day.
func TestPurePackagesReadNoClock(t *testing.T) {
	clock := []string{"Now", "Since", "Until", "After", "AfterFunc", "Sleep", "Tick", "NewTimer", "NewTicker"}
	for _, p := range packages(t) {
		if !matches(rules[0].packages, strings.TrimPrefix(p.ImportPath, module)) {
			continue
		}
		for _, f := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains(clock, sel.Sel.Name) {
					t.Errorf("%s uses time.%s: %s", filepath.Join(p.Dir, f), sel.Sel.Name, rules[0].why)
				}
				return true
			})
		}
	}
}

func TestPackagesHaveComments(t *testing.T) {
	for _, p := range packages(t) {
		documented := len(p.GoFiles) == 0
		for _, f := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			documented = documented || file.Doc != nil
		}
		if !documented {
			t.Errorf("package %s has no comment: say what it is, what always holds, what a crash leaves, who may call it, what it does not do", p.ImportPath)
		}
	}
}
