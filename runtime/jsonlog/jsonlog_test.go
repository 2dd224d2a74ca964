package jsonlog

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var at = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

// logged writes the chunks to one stream and returns the file.
func logged(t *testing.T, chunks ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	w, err := Open(Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	s := w.Stream("stdout")
	s.now = func() time.Time { return at }
	for _, c := range chunks {
		s.Write([]byte(c))
	}
	s.Flush()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func entries(t *testing.T, file string) []string {
	t.Helper()
	var lines []string
	for l := range strings.Lines(file) {
		e, err := Decode([]byte(l))
		if err != nil {
			t.Fatalf("Decode(%q): %v", l, err)
		}
		lines = append(lines, string(e.Line))
	}
	return lines
}

func TestEntriesLookAsDockers(t *testing.T) {
	got := logged(t, "hello \"<&>\"\t\x00\x7fé\n")
	want := `{"log":"hello \"\u003c\u0026\u003e\"\t\u0000` + "\x7f" + `é\n","stream":"stdout","time":"2026-01-02T03:04:05.000000006Z"}` + "\n"
	if got != want {
		t.Errorf("file = %s, want %s", got, want)
	}
}

func TestLines(t *testing.T) {
	long := strings.Repeat("x", maxPiece)
	tests := []struct {
		name   string
		chunks []string
		want   []string
	}{
		{"lines-of-one-chunk", []string{"a\nb\n"}, []string{"a\n", "b\n"}},
		{"a-line-in-two-chunks", []string{"a", "b\n"}, []string{"ab\n"}},
		{"unfinished-line-at-the-end", []string{"a\nb"}, []string{"a\n", "b"}},
		{"empty-line", []string{"\n\n"}, []string{"\n", "\n"}},
		{"longest-line-in-one-piece", []string{long + "\n"}, []string{long + "\n"}},
		{"long-line-in-pieces", []string{long + "yz\n"}, []string{long, "yz\n"}},
		{"long-line-in-pieces-by-chunks", []string{long[:100], long[100:], "yz", "\n"}, []string{long, "yz\n"}},
		{"nothing", []string{""}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := entries(t, logged(t, tt.chunks...)); fmt.Sprintf("%q", got) != fmt.Sprintf("%q", tt.want) {
				t.Errorf("lines = %.80q, want %.80q", got, tt.want)
			}
		})
	}
}

func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w, err := Open(Options{Path: path, MaxSize: 100, MaxFiles: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	s := w.Stream("stderr")
	for i := range 9 {
		s.Write(fmt.Appendf(nil, "line %d\n", i))
	}
	for name, want := range map[string][]string{"": {"line 8\n"}, ".1": {"line 6\n", "line 7\n"}, ".2": {"line 4\n", "line 5\n"}} {
		data, err := os.ReadFile(path + name)
		if err != nil {
			t.Fatal(err)
		}
		if got := entries(t, string(data)); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("log%s = %q, want %q", name, got, want)
		}
	}
	if _, err := os.Stat(path + ".3"); err == nil {
		t.Error("a fourth file is kept, want three")
	}
}

func TestOneFileIsEmptied(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w, err := Open(Options{Path: path, MaxSize: 100, MaxFiles: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	s := w.Stream("stdout")
	for i := range 20 {
		s.Write(fmt.Appendf(nil, "line %d\n", i))
	}
	data, _ := os.ReadFile(path)
	if got := entries(t, string(data)); got[len(got)-1] != "line 19\n" || len(got) > 2 {
		t.Errorf("log = %q, want the last lines only", got)
	}
}

func TestAttributesStandInEveryEntry(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w, err := Open(Options{Path: path, Attrs: `{"a":"b"}`})
	if err != nil {
		t.Fatal(err)
	}
	s := w.Stream("stdout")
	s.now = func() time.Time { return at }
	s.Write([]byte("x\n"))
	w.Close()
	data, _ := os.ReadFile(path)
	want := `{"log":"x\n","stream":"stdout","attrs":{"a":"b"},"time":"2026-01-02T03:04:05.000000006Z"}` + "\n"
	if string(data) != want {
		t.Errorf("file = %s, want %s", data, want)
	}
	if e, err := Decode(data); err != nil || e.Attrs["a"] != "b" {
		t.Errorf("Decode = %+v, %v; want the attribute", e, err)
	}
}

func TestRotatedFilesAreCompressed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w, err := Open(Options{Path: path, MaxSize: 100, MaxFiles: 3, Compress: true})
	if err != nil {
		t.Fatal(err)
	}
	s := w.Stream("stdout")
	for i := range 6 {
		w.mu.Lock()
		w.begun = w.begun.Add(-worthIt) // as if it had filled slowly
		w.mu.Unlock()
		s.Write(fmt.Appendf(nil, "line %d\n", i))
		if w.squeeze != nil {
			<-w.squeeze.done
		}
	}
	w.Close()
	for name, want := range map[string]string{".1.gz": "[line 2\n line 3\n]", ".2.gz": "[line 0\n line 1\n]"} {
		f, err := os.Open(path + name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(z)
		if got := fmt.Sprint(entries(t, string(data))); err != nil || got != want {
			t.Errorf("log%s = %q, %v; want %q", name, got, err, want)
		}
	}
	left, err := filepath.Glob(path + "*")
	if err != nil || len(left) != 3 {
		t.Errorf("files = %v, want the log and two compressed ones", left)
	}
}

func TestAFloodIsNotCompressedAndStaysWithinItsLimit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w, err := Open(Options{Path: path, MaxSize: 64 << 10, MaxFiles: 4, Compress: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	s := w.Stream("stdout")
	chunk := []byte(strings.Repeat(strings.Repeat("x", 99)+"\n", 300))
	for range 200 {
		s.Write(chunk)
	}
	files, _ := filepath.Glob(path + "*")
	var size int64
	for _, f := range files {
		if fi, err := os.Stat(f); err == nil {
			size += fi.Size()
		}
	}
	// A file is rotated after the write that reaches the limit.
	if most := int64(4 * (64<<10 + 2*len(chunk))); len(files) != 4 || size > most {
		t.Errorf("%d files of %d bytes: %v; want 4 and at most %d bytes", len(files), size, files, most)
	}
}

// said is a Sink that remembers.
type said struct{ got []string }

func (s *said) Send(line []byte, stream string, _ time.Time, more bool) {
	s.got = append(s.got, fmt.Sprintf("%s %.3s %d %v", stream, line, len(line), more))
}
func (s *said) Close() { s.got = append(s.got, "closed") }

func TestSinkGetsLinesAndPieces(t *testing.T) {
	sink := &said{}
	w, err := Open(Options{Sink: sink})
	if err != nil {
		t.Fatal(err)
	}
	s := w.Stream("stderr")
	s.Write([]byte("one\n" + strings.Repeat("y", maxPiece) + "zz\nend"))
	s.Flush()
	w.Close()
	want := fmt.Sprint([]string{"stderr one 3 false", fmt.Sprintf("stderr yyy %d true", maxPiece), "stderr zz 2 false", "stderr end 3 false", "closed"})
	if got := fmt.Sprint(sink.got); got != want {
		t.Errorf("sink got %s, want %s", got, want)
	}
}

func TestFullDiskDropsLinesAndCounts(t *testing.T) {
	w, err := Open(Options{Path: "/dev/full"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	s := w.Stream("stdout")
	s.Write([]byte("a\nb\n"))
	if got := w.Dropped(); got != 2 {
		t.Errorf("Dropped = %d, want 2", got)
	}
}

func TestDecodeReadsOthersEntries(t *testing.T) {
	e, err := Decode([]byte(`{"time":"2026-01-02T03:04:05.000000006Z","attrs":{"a":"b"},"stream":"stderr","log":"\ud83d\ude00\/\b"}`))
	if err != nil || e.Stream != "stderr" || string(e.Line) != "😀/\b" || !e.Time.Equal(at) {
		t.Errorf("Decode = %+v, %v", e, err)
	}
	for _, torn := range []string{"", "{", `{"log":"a`, `{"log":"a\n","stream":"stdout","time":"2026-`, `{"log":"x"}`} {
		if e, err := Decode([]byte(torn)); err == nil {
			t.Errorf("Decode(%q) = %+v, want an error", torn, e)
		}
	}
}

func FuzzWhatIsWrittenIsRead(f *testing.F) {
	f.Add([]byte("hello\n"))
	f.Add([]byte("\xff\xfe\u2028\u2029\"\\\x00\x1f<>&"))
	f.Fuzz(func(t *testing.T, line []byte) {
		b := appendEntry(nil, line, "stdout", "", at)
		own, ok := decodeOwn(b)
		if !ok {
			t.Fatalf("decodeOwn(%q) does not know it", b)
		}
		var ref struct{ Log string }
		if err := json.Unmarshal(b, &ref); err != nil || ref.Log != string(own.Line) {
			t.Fatalf("encoding/json reads %q, %v; we read %q", ref.Log, err, own.Line)
		}
		if want := bytes.ToValidUTF8(line, nil); bytes.Equal(want, line) && !bytes.Equal(own.Line, line) {
			t.Fatalf("read %q, written %q", own.Line, line)
		}
	})
}

func FuzzDecodeAgreesWithJSON(f *testing.F) {
	f.Add([]byte(`{"log":"a\n","stream":"stdout","time":"2026-01-02T03:04:05Z"}`))
	f.Add([]byte(`{"log":"\ud800","stream":"stderr","time":"2026-01-02T03:04:05Z"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, ok := decodeOwn(line)
		if !ok {
			Decode(line)
			return
		}
		var ref struct {
			Log, Stream string
			Time        time.Time
		}
		if err := json.Unmarshal(line, &ref); err != nil || ref.Log != string(e.Line) || ref.Stream != e.Stream || !ref.Time.Equal(e.Time) {
			t.Fatalf("Decode(%q) = %+v, encoding/json = %+v, %v", line, e, ref, err)
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	w, err := Open(Options{Path: filepath.Join(b.TempDir(), "log"), MaxSize: 1 << 20, MaxFiles: 2})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	s := w.Stream("stdout")
	line := []byte(strings.Repeat("a", 99) + "\n")
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	for b.Loop() {
		s.Write(line)
	}
}

func BenchmarkDecode(b *testing.B) {
	line := appendEntry(nil, []byte(strings.Repeat("a", 99)+"\n"), "stdout", "", at)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(line); err != nil {
			b.Fatal(err)
		}
	}
}
