package oci

import (
	"fmt"

	"github.com/distribution/reference"
)

// A Reference names an image in full: "docker.io/library/redis:7",
// "host:5000/app@sha256:…". The zero value names nothing.
type Reference struct {
	Domain string // registry host, "docker.io" where none was given
	Path   string // repository path, with "library/" where Docker adds it
	Tag    string // empty when only a digest was given
	Digest Digest // empty when only a tag was given
}

// ParseReference reads a reference as people type it. A name without tag and
// digest gets the tag "latest".
func ParseReference(s string) (Reference, error) {
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Reference{}, fmt.Errorf("invalid reference format: %w", err)
	}
	named = reference.TagNameOnly(named)
	r := Reference{Domain: reference.Domain(named), Path: reference.Path(named)}
	if t, ok := named.(reference.Tagged); ok {
		r.Tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		if r.Digest, err = ParseDigest(d.Digest().String()); err != nil {
			return Reference{}, err
		}
	}
	return r, nil
}

// String is the full, unambiguous form.
func (r Reference) String() string { return r.Domain + "/" + r.Path + r.suffix() }

// Repository is the full name without tag and digest.
func (r Reference) Repository() string { return r.Domain + "/" + r.Path }

// Familiar is the short form that people see: "redis:7".
func (r Reference) Familiar() string { return r.FamiliarRepository() + r.suffix() }

// FamiliarRepository is the short form without tag and digest.
func (r Reference) FamiliarRepository() string {
	named, err := reference.WithName(r.Repository())
	if err != nil {
		return r.Repository()
	}
	return reference.FamiliarName(named)
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
