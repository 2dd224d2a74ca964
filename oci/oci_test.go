package oci

import "testing"

func TestChainOfFollowsTheSpecification(t *testing.T) {
	a, b := DiffID(FromBytes([]byte("a"))), DiffID(FromBytes([]byte("b")))
	if got := ChainOf([]DiffID{a}); got != ChainID(a) {
		t.Errorf("ChainOf(a) = %s, want the diff ID itself, %s", got, a)
	}
	want := ChainID(FromBytes([]byte(string(a) + " " + string(b))))
	if got := ChainOf([]DiffID{a, b}); got != want {
		t.Errorf("ChainOf(a, b) = %s, want %s", got, want)
	}
}

func TestParseReference(t *testing.T) {
	tests := []struct{ in, full, familiar string }{
		{"redis", "docker.io/library/redis:latest", "redis:latest"},
		{"redis:7", "docker.io/library/redis:7", "redis:7"},
		{"me/app", "docker.io/me/app:latest", "me/app:latest"},
		{"host:5000/a/b:c", "host:5000/a/b:c", "host:5000/a/b:c"},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			r, err := ParseReference(tt.in)
			if err != nil || r.String() != tt.full || r.Familiar() != tt.familiar {
				t.Errorf("ParseReference(%q) = %q, %q, %v; want %q, %q", tt.in, r, r.Familiar(), err, tt.full, tt.familiar)
			}
		})
	}
	for _, bad := range []string{"", "UPPER", "a:b:c", "a@sha256:1"} {
		if r, err := ParseReference(bad); err == nil {
			t.Errorf("ParseReference(%q) = %v, want an error", bad, r)
		}
	}
}

func TestParsePlatform(t *testing.T) {
	for in, want := range map[string]string{
		"arm64": "linux/arm64", "linux/arm64/v8": "linux/arm64", "linux/arm/v7": "linux/arm/v7", "x86_64": "linux/amd64",
	} {
		if p, err := ParsePlatform(in); err != nil || p.String() != want {
			t.Errorf("ParsePlatform(%q) = %v, %v; want %s", in, p, err, want)
		}
	}
	if p, err := ParsePlatform("a/b/c/d"); err == nil {
		t.Errorf("ParsePlatform(a/b/c/d) = %v, want an error", p)
	}
}

func FuzzParseReference(f *testing.F) {
	f.Add("busybox")
	f.Add("example.com:5000/a/b:c@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")
	f.Add("a//b:")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReference(s)
		if err != nil {
			return
		}
		if again, err := ParseReference(r.String()); err != nil || again != r {
			t.Errorf("ParseReference(%q) = %+v, %v; want %+v as from %q", r.String(), again, err, r, s)
		}
		if again, err := ParseReference(r.Familiar()); err != nil || again != r {
			t.Errorf("ParseReference(%q) = %+v, %v; want %+v as from %q", r.Familiar(), again, err, r, s)
		}
	})
}
