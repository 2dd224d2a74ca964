package oci

import (
	"fmt"
	"strings"
)

// A Reference names an image in full: "docker.io/library/redis:7",
// "host:5000/app@sha256:…". The zero value names nothing.
type Reference struct {
	Domain string // registry host, "docker.io" where none was given
	Path   string // repository path, with "library/" where Docker adds it
	Tag    string // empty when only a digest was given
	Digest Digest // empty when only a tag was given
}

const (
	defaultDomain = "docker.io"
	official      = "library/" // what Docker Hub has by a name alone
	longestPath   = 255
	longestTag    = 128
)

// ParseReference reads a reference as people type it. A name without tag and
// digest gets the tag "latest".
//
// The grammar is that of github.com/distribution/reference, the oracle of the
// tests, whose regular expressions would take a millisecond and 400 kB at each
// start.
func ParseReference(s string) (Reference, error) {
	r, err := parseReference(s)
	if err != nil {
		return Reference{}, fmt.Errorf("invalid reference format: %w", err)
	}
	return r, nil
}

func parseReference(s string) (r Reference, err error) {
	if IsHex(s) {
		return r, fmt.Errorf("%q is an ID and no name", s)
	}
	rest, digest, hasDigest := strings.Cut(s, "@")
	if hasDigest {
		if r.Digest, err = ParseDigest(digest); err != nil {
			return r, err
		}
	}
	r.Domain, rest = splitDomain(rest)
	path, tag, hasTag := strings.Cut(rest, ":")
	r.Path, r.Tag = path, tag
	if !hasTag && !hasDigest {
		r.Tag = "latest"
	}
	switch {
	case path == "" || path == official:
		return r, fmt.Errorf("%q has no name", s)
	case strings.ToLower(path) != path:
		return r, fmt.Errorf("repository name (%s) must be lowercase", path)
	case len(path) > longestPath:
		return r, fmt.Errorf("repository name must not be more than %d characters", longestPath)
	case !isDomain(r.Domain):
		return r, fmt.Errorf("%q is no registry", r.Domain)
	case !isPath(path):
		return r, fmt.Errorf("%q is no repository: letters and digits may have . _ __ or - between them", path)
	case (hasTag || !hasDigest) && !isTag(r.Tag):
		return r, fmt.Errorf("%q is no tag", r.Tag)
	}
	return r, nil
}

// splitDomain takes the registry off a name. The first part is one if it could
// not be part of a name on Docker Hub.
func splitDomain(name string) (domain, rest string) {
	domain, rest, ok := strings.Cut(name, "/")
	switch {
	case !ok || domain != "localhost" && !strings.ContainsAny(domain, ".:") && strings.ToLower(domain) == domain:
		domain, rest = defaultDomain, name
	case domain == "index.docker.io": // its name long ago
		domain = defaultDomain
	}
	if domain == defaultDomain && !strings.Contains(rest, "/") {
		rest = official + rest
	}
	return domain, rest
}

func lower(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
func word(c byte) bool  { return lower(c) || c >= 'A' && c <= 'Z' }

// all reports whether s has only bytes that are ok.
func all(s string, ok func(byte) bool) bool {
	for i := range len(s) {
		if !ok(s[i]) {
			return false
		}
	}
	return true
}

func isDomain(s string) bool {
	host, port, hasPort := strings.Cut(s, ":")
	if v6, ok := strings.CutPrefix(s, "["); ok {
		host, port, ok = strings.Cut(v6, "]")
		hex := func(c byte) bool {
			return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F' || c == ':'
		}
		if !ok || host == "" || !all(host, hex) {
			return false
		}
		port, hasPort = strings.CutPrefix(port, ":")
		return hasPort && isNumber(port) || !hasPort && port == ""
	}
	for part := range strings.SplitSeq(host, ".") {
		if !all(part, func(c byte) bool { return word(c) || c == '-' }) || strings.Trim(part, "-") != part || part == "" {
			return false
		}
	}
	return !hasPort || isNumber(port)
}

func isNumber(s string) bool {
	return s != "" && all(s, func(c byte) bool { return c >= '0' && c <= '9' })
}

func isPath(s string) bool {
	for part := range strings.SplitSeq(s, "/") {
		if !isPathPart(part) {
			return false
		}
	}
	return true
}

// isPathPart wants words with a dot, one or two underscores, or any number of
// hyphens between them.
func isPathPart(s string) bool {
	for {
		rest := strings.TrimLeftFunc(s, func(c rune) bool { return c < 0x80 && lower(byte(c)) })
		if rest == "" || rest == s {
			return rest != s
		}
		s = strings.TrimLeft(rest, "._-")
		between := rest[:len(rest)-len(s)]
		if strings.Trim(between, "-") != "" && between != "." && between != "_" && between != "__" {
			return false
		}
	}
}

func isTag(s string) bool {
	rest := strings.TrimLeft(s, ".-")
	return s != "" && rest == s && len(s) <= longestTag && all(s, func(c byte) bool { return word(c) || c == '_' || c == '.' || c == '-' })
}

// String is the full, unambiguous form.
func (r Reference) String() string { return r.Domain + "/" + r.Path + r.suffix() }

// Repository is the full name without tag and digest.
func (r Reference) Repository() string { return r.Domain + "/" + r.Path }

// Familiar is the short form that people see: "redis:7".
func (r Reference) Familiar() string { return r.FamiliarRepository() + r.suffix() }

// FamiliarRepository is the short form without tag and digest.
func (r Reference) FamiliarRepository() string {
	if r.Domain != defaultDomain {
		return r.Repository()
	}
	if name, ok := strings.CutPrefix(r.Path, official); ok && !strings.Contains(name, "/") {
		return name
	}
	return r.Path
}

func (r Reference) suffix() string {
	var s string
	if r.Tag != "" {
		s = ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + string(r.Digest)
	}
	return s
}
