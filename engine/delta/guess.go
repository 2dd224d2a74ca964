package delta

import (
	"cmp"
	"iter"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/minke-os/minke/oci"
)

// A candidate is a content that may serve as a base.
type candidate struct {
	Content
	path string
	dir  []string // plain, see plainDir
}

// candidates guess what a new file was made from: the file at the same path, one
// of the same name but for versions, or one that has pieces in common.
type candidates struct {
	all    []candidate
	known  map[oci.Digest]bool
	byPath map[string][]candidate
	byName map[string][]candidate // and, by plainPlace, those in a directory of the same name

	once    sync.Once
	err     error
	byPiece map[uint64][]int // of all
}

func newCandidates() *candidates {
	return &candidates{known: map[oci.Digest]bool{}, byPath: map[string][]candidate{}, byName: map[string][]candidate{}}
}

// minBase is the size of files that are worth a look, in bytes.
const minBase = 32

func (g *candidates) add(p string, c Content) {
	p = path.Clean(p)
	if c.Size < minBase {
		return
	}
	k := candidate{c, p, plainDir(p)}
	g.byPath[p] = append(g.byPath[p], k)
	for _, name := range []string{plainName(p), plainPlace(p, k.dir)} {
		g.byName[name] = append(g.byName[name], k)
	}
	if !g.known[c.Digest] {
		g.known[c.Digest] = true
		g.all = append(g.all, k)
	}
}

var (
	versions = regexp.MustCompile(`[0-9]+([._+~-]?[0-9]+)*`)
	hashes   = regexp.MustCompile(`[0-9a-f]{8,}`)
)

// plainName is a file's name without what changes from version to version:
// numbers, and the hashes that web tools put into names.
func plainName(p string) string {
	return versions.ReplaceAllString(hashes.ReplaceAllString(path.Base(p), "#"), "#")
}

// plainPlace is the same with the directory that the file is in.
func plainPlace(p string, dir []string) string { return dir[len(dir)-1] + "/" + plainName(p) }

// Of candidates of one kind no more than these are tried.
const (
	maxNamed   = 3
	maxLikened = 256 // files of one name that are compared: of some, as index.js, there are thousands
	maxSimilar = 2
	minSimilar = 4 << 10 // bytes of a file that is compared by pieces
)

// of gives candidates, the most likely first. Later ones cost more to find, so
// stop when content with one.
func (g *candidates) of(p string, c Content, data []byte, read func(Content) ([]byte, error)) iter.Seq[candidate] {
	return func(yield func(candidate) bool) {
		if c.Size < minBase {
			return
		}
		tried := map[oci.Digest]bool{}
		try := func(k candidate) bool {
			if tried[k.Digest] {
				return true
			}
			tried[k.Digest] = true
			return yield(k)
		}
		p = path.Clean(p)
		for _, k := range g.byPath[p] {
			if !try(k) {
				return
			}
		}
		for _, k := range g.named(p, c) {
			if !try(k) {
				return
			}
		}
		if c.Size < minSimilar {
			return
		}
		g.once.Do(func() { g.err = g.cut(read) })
		if g.err != nil {
			return // the error comes again when a base is read for a patch
		}
		for _, k := range g.similar(data) {
			if !try(k) {
				return
			}
		}
	}
}

// named are files of the same plain name, those in the likest directory and of
// the likest size first.
func (g *candidates) named(p string, c Content) []candidate {
	dir := plainDir(p)
	found := likest(g.byName[plainPlace(p, dir)], dir, c)
	if len(found) < maxNamed {
		found = append(found, likest(g.byName[plainName(p)], dir, c)...)
	}
	return found
}

func likest(all []candidate, dir []string, c Content) []candidate {
	found := slices.Clone(all[:min(len(all), maxLikened)])
	slices.SortStableFunc(found, func(a, b candidate) int {
		return cmp.Or(
			-cmp.Compare(commonSuffix(a.dir, dir), commonSuffix(b.dir, dir)),
			cmp.Compare(max(a.Size, c.Size)-min(a.Size, c.Size), max(b.Size, c.Size)-min(b.Size, c.Size)),
		)
	})
	return found[:min(len(found), maxNamed)]
}

func plainDir(p string) []string {
	return strings.Split(versions.ReplaceAllString(path.Dir(p), "#"), "/")
}

func commonSuffix(a, b []string) (n int) {
	for n < len(a) && n < len(b) && a[len(a)-1-n] == b[len(b)-1-n] {
		n++
	}
	return n
}

// sketchSize is how many pieces stand for a file.
const sketchSize = 16

// sketch picks pieces of a file that are picked again wherever they lie: the
// smallest of the hashes over 64 bytes each.
func sketch(data []byte) []uint64 {
	var out []uint64
	h := uint64(0)
	for i, b := range data {
		h = h<<1 + gear(b)        // forgets a byte after 64
		if i < 64 || h>>56 != 0 { // one in 256
			continue
		}
		v := h * 0x9e3779b97f4a7c15
		at, found := slices.BinarySearch(out, v)
		if found || at == sketchSize {
			continue
		}
		out = slices.Insert(out, at, v)
		out = out[:min(len(out), sketchSize)]
	}
	return out
}

func gear(b byte) uint64 {
	v := (uint64(b) + 1) * 0xbf58476d1ce4e5b9
	v ^= v >> 27
	return v * 0x94d049bb133111eb
}

// cut makes sketches of all candidates.
func (g *candidates) cut(read func(Content) ([]byte, error)) error {
	g.byPiece = map[uint64][]int{}
	for i, k := range g.all {
		if k.Size < minSimilar {
			continue
		}
		data, err := read(k.Content)
		if err != nil {
			return err
		}
		for _, v := range sketch(data) {
			g.byPiece[v] = append(g.byPiece[v], i)
		}
	}
	return nil
}

// similar are files that share at least two pieces with data.
func (g *candidates) similar(data []byte) (out []candidate) {
	votes := map[int]int{}
	for _, v := range sketch(data) {
		for _, i := range g.byPiece[v] {
			votes[i]++
		}
	}
	var order []int
	for i, n := range votes {
		if n >= 2 {
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Or(-cmp.Compare(votes[a], votes[b]), cmp.Compare(a, b)) })
	for _, i := range order[:min(len(order), maxSimilar)] {
		out = append(out, g.all[i])
	}
	return out
}
