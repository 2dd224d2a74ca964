package delta

import (
	"fmt"
	"testing"

	"github.com/minke-os/minke/oci"
)

// Of thousands of files with one name few are compared, and the one that has moved
// with its directory is among them.
func TestAMovedFileIsFoundAmongThousandsOfItsName(t *testing.T) {
	g := newCandidates()
	content := func(n int) Content {
		return Content{Digest: oci.FromBytes(fmt.Append(nil, n)), Size: 100}
	}
	letters := func(n int) string { return fmt.Sprintf("%c%c%c", 'g'+n/400, 'g'+n/20%20, 'g'+n%20) }
	const files = 5000
	for i := range files {
		g.add("old/"+letters(i)+"/index.js", content(i))
	}
	if got := g.byName["index.js"]; len(got) != files {
		t.Fatalf("%d files have the name, want %d", len(got), files)
	}
	tried := 0
	for k := range g.of("new/"+letters(files-1)+"/index.js", content(files), nil, nil) {
		if tried++; tried == 1 && k.Content != content(files-1) {
			t.Errorf("%s is tried first, want the file that was moved", k.path)
		}
	}
	if tried == 0 || tried > 2*maxNamed {
		t.Errorf("%d files are tried, want some, and no more than %d", tried, 2*maxNamed)
	}
}
