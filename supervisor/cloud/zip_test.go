package cloud

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand"
	"strings"
	"testing"
)

func TestWhatIsZippedComesOut(t *testing.T) {
	random := make([]byte, 100_000)
	rand.New(rand.NewSource(1)).Read(random)
	var lines []string
	for i := range 3000 {
		lines = append(lines, fmt.Sprintf(`{"message":"line %d of many","timestamp":17641700%05d}`+"\n", i, i*7))
	}
	for _, tt := range []struct {
		name  string
		drops []string
		most  int // bytes that may come of it; 0 for any
	}{
		{"nothing", nil, 0},
		{"one-byte", []string{"x"}, 0},
		{"lines", lines, 100_000}, // of 160,000
		{"lines-at-once", []string{strings.Join(lines, "")}, 40_000},
		{"what-does-not-compress", []string{"a", string(random), "b", string(random[:40])}, 0},
		{"many-pages", []string{strings.Repeat("0123456789abcdef", 20_000), "end"}, 5_000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, w := io.Pipe()
			in := &counted{r: r}
			done := make(chan error, len(tt.drops)+1)
			go func() { // a server, which sees each drop as it comes
				g, err := gzip.NewReader(in)
				if err == nil {
					for _, want := range tt.drops {
						got := make([]byte, len(want))
						if _, err = io.ReadFull(g, got); err != nil || string(got) != want {
							err = fmt.Errorf("%d bytes came as others: %v", len(want), err)
							break
						}
						done <- nil
					}
				}
				if err == nil {
					var rest []byte
					if rest, err = io.ReadAll(g); len(rest) > 0 {
						err = fmt.Errorf("%d bytes more", len(rest))
					}
				}
				done <- err
			}()
			z := &zipper{w: w}
			for _, d := range tt.drops {
				if _, err := z.Write([]byte(d)); err != nil {
					t.Fatal(err)
				}
				if err := z.Flush(); err != nil {
					t.Fatal(err)
				}
				if err := <-done; err != nil {
					t.Fatal(err)
				}
			}
			if err := z.Close(); err != nil {
				t.Fatal(err)
			}
			w.Close()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if tt.most > 0 && in.n > tt.most {
				t.Errorf("%d bytes, want at most %d", in.n, tt.most)
			}
			if cap(z.before) > 2*zipWindow {
				t.Errorf("%d bytes are kept", cap(z.before))
			}
		})
	}
}

type counted struct {
	r io.Reader
	n int
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

func TestAZipperSaysWhatFails(t *testing.T) {
	r, w := io.Pipe()
	r.Close()
	z := &zipper{w: w}
	if _, err := z.Write(bytes.Repeat([]byte("x"), zipMost)); err == nil {
		t.Error("a write to a closed connection succeeds")
	}
	if z.Close() == nil {
		t.Error("so does its end")
	}
}
