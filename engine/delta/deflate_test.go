package delta

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	"os/exec"
	"strings"
	"testing"

	"github.com/minke-os/minke/internal/testenv"
)

func gzipped(level int, text string) []byte {
	var buf bytes.Buffer
	w, _ := gzip.NewWriterLevel(&buf, level)
	w.Name, w.Comment, w.Extra = "name", "comment", []byte("extra")
	w.Write([]byte(text))
	w.Close()
	return buf.Bytes()
}

func zipped(texts ...string) []byte {
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for i, text := range texts {
		f, _ := w.CreateHeader(&zip.FileHeader{Name: strings.Repeat("n", i+1), Method: uint16(i % 2 * 8)})
		f.Write([]byte(text))
	}
	w.Close()
	return buf.Bytes()
}

// words is text that no two compressors treat alike.
func words(n int) string {
	r := noise(5, n)
	var b strings.Builder
	for i := range n {
		b.WriteString([]string{"install ", "\xff\xfe", "configure ", "remove, ", "the ", "of\n", "a package ", "1.2-"}[r[i]&7])
	}
	return b.String()
}

func TestOpenedFilesAreClosedAgain(t *testing.T) {
	text := words(20_000)
	tests := map[string][]byte{
		"fast":          gzipped(1, text),
		"best":          gzipped(9, text),
		"huffman-alone": gzipped(gzip.HuffmanOnly, text),
		"stored":        gzipped(0, text),
		"noise":         gzipped(9, program),
		"small":         gzipped(9, "abc"),
		"runs":          gzipped(9, strings.Repeat("a", 100_000)),
		"zip":           zipped(text, text[5000:], "x", text[100:]),
	}
	for _, args := range []string{"-1", "-6", "-9n"} {
		cmd := exec.Command(testenv.Need(t, "gzip"), args)
		cmd.Stdin = strings.NewReader(text)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		tests["gzip"+args] = out
	}
	for name, b := range tests {
		t.Run(name, func(t *testing.T) {
			form, ok := opened(nil, b)
			if !ok {
				t.Fatalf("a file of %d bytes was not opened", len(b))
			}
			got, err := closed(nil, form, int64(len(b)))
			if err != nil || !bytes.Equal(got, b) {
				t.Errorf("%d bytes, opened %d, are %d when closed, %v", len(b), len(form), len(got), err)
			}
		})
	}
	for name, b := range map[string][]byte{"plain": []byte(text), "empty": nil, "gzip-header-alone": gzipped(9, text)[:10], "cut": gzipped(9, text)[:3000]} {
		if _, ok := opened(nil, b); ok {
			t.Errorf("%s: it was opened", name)
		}
	}
}

func TestOpenedFormsThatLie(t *testing.T) {
	fixed := func(tokens ...byte) []byte { return append([]byte{0, 1, 3}, tokens...) } // the last block, type 1
	end := []byte{escape, 1, 0, 0, 0, 0}
	tests := []struct {
		name  string
		form  []byte
		limit int64
		want  string // in the error
	}{
		{"empty", nil, 9, "unexpected EOF"},
		{"more-bytes-than-there-are", []byte{200, 1}, 9, "unexpected EOF"},
		{"something-behind-the-end", []byte{1, 'a', 0, 0}, 9, "not what it says"},
		{"unknown-part", []byte{1, 'a', 2}, 9, "not what it says"},
		{"longer-than-it-says", []byte{3, 'a', 'b', 'c', 0}, 2, "not what it says"},
		{"tokens-longer-than-it-says", fixed(append(bytes.Repeat([]byte{'a'}, 100), end...)...), 20, "larger than it says"},
		{"block-of-type-3", []byte{0, 1, 7}, 9, "unknown type"},
		{"no-end-of-the-block", fixed('a'), 9, "unexpected EOF"},
		{"distance-0", fixed(escape, 9, 0, 0), 9, "distance"},
		{"distance-too-large", fixed(escape, 9, 0x80, 1), 9, "distance"},
		{"stored-block-cut", []byte{0, 1, 1, 9, 0, 'a'}, 9, "unexpected EOF"},
		{"lengths-that-are-none", []byte{0, 1, 5, 32, 0, 0}, 9, "more codes"},
		{"code-too-long", []byte{0, 1, 5, 0, 0, 0, 8, 0, 0, 0}, 9, "too long"},
		{"symbol-without-a-code", []byte{0, 1, 5, 0, 0, 0, 1, 1, 0, 0, 18, 127, 5}, 9, "without a code"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := closed(nil, tt.form, tt.limit); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("closed = %v, want %q", err, tt.want)
			}
		})
	}
}

func FuzzOpened(f *testing.F) {
	f.Add(gzipped(9, words(100)), []byte{})
	f.Add(zipped(words(100), words(50)), []byte{})
	form, _ := opened(nil, gzipped(6, words(40)))
	f.Add([]byte{}, form)
	f.Fuzz(func(t *testing.T, b, form []byte) {
		if form, ok := opened(nil, b); ok {
			if got, err := closed(nil, form, int64(len(b))); err != nil || !bytes.Equal(got, b) {
				t.Fatalf("%x, opened %x, is %x when closed, %v", b, form, got, err)
			}
		}
		closed(nil, form, 1<<16)
	})
}
