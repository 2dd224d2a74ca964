package delta

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

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
			form, ok := opened(nil, b, opensZstd)
			if !ok {
				t.Fatalf("a file of %d bytes was not opened", len(b))
			}
			got, err := closed(nil, form, int64(len(b)), opensZstd)
			if err != nil || !bytes.Equal(got, b) {
				t.Errorf("%d bytes, opened %d, are %d when closed, %v", len(b), len(form), len(got), err)
			}
		})
	}
	for name, b := range map[string][]byte{"plain": []byte(text), "empty": nil, "gzip-header-alone": gzipped(9, text)[:10], "cut": gzipped(9, text)[:3000]} {
		if _, ok := opened(nil, b, opensZstd); ok {
			t.Errorf("%s: it was opened", name)
		}
	}
}

// zstdOf has the reference program compress, whose frames have all that there is.
func zstdOf(t testing.TB, text string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(testenv.Need(t, "zstd"), args...)
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestOpenedFramesAreClosedAgain(t *testing.T) {
	text := words(60_000)
	tests := map[string][]byte{}
	for name, content := range map[string]string{
		"words": text, "program": program, "zeros": strings.Repeat("\x00", 300_000), "small": "abc", "empty": "",
		"mixed": text[:50_000] + program[:50_000] + strings.Repeat("ab", 40_000) + text[20_000:70_000],
		"bits":  hex.EncodeToString([]byte(program[:40_000])),
	} {
		for _, args := range [][]string{{"-1"}, {"-3"}, {"-9", "--no-check"}, {"-19"}, {"--ultra", "-22"}, {"--fast=5"}} {
			tests[name+strings.Join(args, "")] = zstdOf(t, content, args...)
		}
		var buf bytes.Buffer
		z, err := zstd.NewWriter(&buf)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(z, content)
		z.Close()
		tests[name+"-by-another-program"] = buf.Bytes()
	}
	delete(tests, "empty-by-another-program") // which is no frame
	for name, b := range tests {
		t.Run(name, func(t *testing.T) {
			form, ok := opened(nil, b, opensZstd)
			if !ok || !hasFrame(form) {
				t.Fatalf("a file of %d bytes was not opened", len(b))
			}
			got, err := closed(nil, form, int64(len(b)), opensZstd)
			if err != nil || !bytes.Equal(got, b) {
				t.Errorf("%d bytes, opened %d, are %d when closed, %v", len(b), len(form), len(got), err)
			}
			if _, err := closed(nil, form, int64(len(b)), opensDeflate); err == nil {
				t.Error("a delta of version 2 has a frame")
			}
			if _, ok := opened(nil, b, opensDeflate); ok {
				t.Error("for version 2 it was opened, too")
			}
		})
	}
}

func TestFramesThatLie(t *testing.T) {
	frame := func(blocks ...byte) []byte { // with a window, and no size
		return append([]byte("\x00\x02"+zstdMagic+"\x00\x00"), blocks...)
	}
	tests := []struct {
		name string
		form []byte
		want string // in the error
	}{
		{"no-header", []byte("\x00\x02" + zstdMagic), "without a header"},
		{"no-blocks", frame(), "unexpected EOF"},
		{"block-of-type-3", frame(7), "unknown type"},
		{"plain-block-cut", frame(1, 9, 'a'), "unexpected EOF"},
		{"plain-block-too-large", frame(1, 0xff, 0xff, 0x7f), "more than there can be"},
		{"literals-too-many", frame(5, 0, 0xff, 0xff, 0x7f), "more than there can be"},
		{"literals-of-unknown-type", frame(5, 16, 1, 0, 'a'), "unknown type"},
		{"literals-that-are-none", frame(5, 1, 0, 0), "none"},
		{"no-code-before", frame(5, 3, 1, 0, 'a'), "without a code"},
		{"code-that-is-none", frame(5, 2, 1, 128, 0xff), "no zstd frame"},
		{"symbol-without-a-code", frame(5, 2, 1, 128, 0x10, 0, 9), "without a code"},
		{"four-streams-of-nothing", frame(5, 2|1<<2, 1, 128, 0x10, 0, 0), "too few"},
		{"table-of-before", frame(5, 0, 0, 1, 3<<6, 0, 0, 0), "no zstd frame"},
		{"match-of-nothing", frame(5, 0, 0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 1), "match of nothing"},
		{"offset-0", frame(5, 0, 0, 1, 0, 0, 0, 0, 0, 3, 0, 0, 0), "match of nothing"},
		{"more-literals-than-there-are", frame(5, 0, 1, 1, 0, 0, 0, 0, 2, 'a', 'b', 'c', 'd'), "more than there can be"},
		{"no-such-state", frame(5, 0, 0, 1, 0, 9, 0, 0, 0, 3, 0, 0, 1), "does not have"},
		{"symbol-that-its-table-lacks", frame(5, 0, 0, 1, 1<<6, 1, 0, 0, 0, 0, 3, 0, 0, 1), "without a code"},
		{"frame-behind-bytes", append([]byte{1, 'a', 2}, frame(1, 0, 0, 0)[2:]...), "not what it says"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := closed(nil, tt.form, 1<<10, opensZstd)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("closed = %v, want %q", err, tt.want)
			}
		})
	}
	long := frame(1, 20)
	long = append(append(long, bytes.Repeat([]byte{'a'}, 20)...), 0, 0)
	if _, err := closed(nil, long, 12, opensZstd); err == nil {
		t.Error("a frame that is larger than it says was closed")
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
			if _, err := closed(nil, tt.form, tt.limit, opensZstd); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("closed = %v, want %q", err, tt.want)
			}
		})
	}
}

func FuzzOpened(f *testing.F) {
	f.Add(gzipped(9, words(100)), []byte{})
	f.Add(zipped(words(100), words(50)), []byte{})
	form, _ := opened(nil, gzipped(6, words(40)), opensZstd)
	f.Add([]byte{}, form)
	for _, name := range []string{"old.zst", "new.zst"} {
		b := []byte(stored(f, name))
		form, _ := opened(nil, b, opensZstd)
		f.Add(b, form)
	}
	f.Fuzz(func(t *testing.T, b, form []byte) {
		if form, ok := opened(nil, b, opensDeflate); ok {
			if got, err := closed(nil, form, int64(len(b)), opensDeflate); err != nil || !bytes.Equal(got, b) {
				t.Fatalf("%x, opened %x, is %x when closed, %v", b, form, got, err)
			}
		}
		openable(b)
		closed(nil, form, 1<<16, opensZstd)
	})
}
