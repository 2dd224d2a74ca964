package oci

import (
	"errors"
	"strings"
	"testing"

	"github.com/distribution/reference"
)

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

// references are right and wrong in all ways that there are.
var references = []string{
	"busybox", "a/b", "a/b/c:d", "docker.io/a", "index.docker.io/a/b", "docker.io/library/a/b", "library/a", "library/a/b", "localhost/a", "localhost:5000/a", "Host/a", "a.b/c", "a_b.c/d", "host:x/a", "host:/a", ":5000/a", "-a.b/c", "a-.b/c", "a..b/c", "a.b./c",
	"[::1]/a", "[::1]:5000/a:b", "[]/a", "[::1]x/a", "[::1]:/a", "[g:]/a", "[::1/a",
	"a.b_c__d-e--f", "a..b", "a___b", "a._b", "-a", "a-", "_a", "a_", "a//b", "/a", "a/", "a/-b", "aé", "a b", "a.B/c", "A", "a/B", "a.b/C",
	"a:", "a:b:c", "a:.b", "a:-b", "a:_b", "a:B.c-d_e", "a:b/c", "a:é", "a@", "a@sha256:1", "a:b@sha256:" + hex64, "host:1/a@sha256:" + hex64, "a@sha256:" + hex64 + "@x", "@sha256:" + hex64, "a@sha512:" + hex64 + hex64, "sha256:" + hex64,
	hex64, hex64 + "a", "", "/", ":", "@", "docker.io", "docker.io/", "a:" + strings.Repeat("t", 128), "a:" + strings.Repeat("t", 129), strings.Repeat("p", 247), strings.Repeat("p", 248), "x.y/" + strings.Repeat("p", 255), "x.y/" + strings.Repeat("p", 256),
}

const hex64 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestReferencesAreReadAsDockerReadsThem(t *testing.T) {
	for _, s := range references {
		sameAsDocker(t, s)
	}
}

func sameAsDocker(t *testing.T, s string) {
	t.Helper()
	got, err := ParseReference(s)
	named, wantErr := reference.ParseNormalizedNamed(s)
	if wantErr == nil && reference.Domain(named) == "" {
		wantErr = errors.New("it takes a registry that is none for a part of the path")
	}
	var want Reference
	if wantErr == nil {
		named = reference.TagNameOnly(named)
		want = Reference{Domain: reference.Domain(named), Path: reference.Path(named)}
		if t, ok := named.(reference.Tagged); ok {
			want.Tag = t.Tag()
		}
		if d, ok := named.(reference.Digested); ok {
			if want.Digest, wantErr = ParseDigest(d.Digest().String()); wantErr != nil { // of another algorithm
				want = Reference{}
			}
		}
	}
	if (err == nil) != (wantErr == nil) || got != want {
		t.Errorf("ParseReference(%q) = %+v, %v; Docker has %+v, %v", s, got, err, want, wantErr)
	} else if err == nil && got.FamiliarRepository() != reference.FamiliarName(named) {
		t.Errorf("%q is %q to people, Docker has %q", s, got.FamiliarRepository(), reference.FamiliarName(named))
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range references {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		sameAsDocker(t, s)
		r, err := ParseReference(s)
		if err != nil {
			return
		}
		if again, err := ParseReference(r.String()); err != nil || again != r {
			t.Errorf("ParseReference(%q) = %+v, %v; want %+v as from %q", r.String(), again, err, r, s)
		}
		if first, _, _ := strings.Cut(r.Path, "/"); first == "localhost" || strings.Contains(first, ".") {
			return // on Docker Hub; what people see of it would be of a registry, with Docker, too
		}
		if again, err := ParseReference(r.Familiar()); err != nil || again != r {
			t.Errorf("ParseReference(%q) = %+v, %v; want %+v as from %q", r.Familiar(), again, err, r, s)
		}
	})
}
