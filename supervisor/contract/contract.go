// Package contract decides whether a device has what a service asks for.
//
//	Contract  what a service requires: its "contract" in a target state
//	Offer     one thing that the device has: its type, its system, its kernel
//
// A contract is met when each requirement is met by some offer. Types of
// requirements that nobody offers are refused by Parse, for they are a mistake
// of whoever wrote the contract; a requirement that this device cannot meet is
// Unmet's answer.
//
// The package is pure: what the device has is passed in.
package contract

import (
	"fmt"
	"slices"
	"strings"
)

// Types of what can be offered and asked for.
const (
	Supervisor = "sw.supervisor"
	L4T        = "sw.l4t"
	OS         = "sw.os"
	Kernel     = "sw.kernel"
	DeviceType = "hw.device-type"
	Arch       = "arch.sw"
)

// Types are all of them.
var Types = []string{Supervisor, L4T, OS, Kernel, DeviceType, Arch}

// An Offer is one thing that the device has. Slug and Version may be empty.
type Offer struct{ Type, Slug, Version string }

// A Requirement is one thing that a service asks for: of a type and, unless
// they are empty, of a name and in a range of versions. One that has
// alternatives has nothing else and is met by any of them.
type Requirement struct {
	Type, Slug, Version string
	Data                bool // it asks for data, which no device of ours offers
	Or                  []Requirement
}

// A Contract is what a service asks for. The zero value asks for nothing.
type Contract struct{ Requires []Requirement }

// maxDepth bounds alternatives of alternatives.
const maxDepth = 8

// Parse reads a contract as it is in a target state; nil is an empty one. An
// error begins with the path of the field that is wrong.
func Parse(v any) (Contract, error) {
	if v == nil {
		return Contract{}, nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		return Contract{}, fmt.Errorf("contract: want an object")
	}
	requires, err := requirements(m["requires"], "contract.requires", 0)
	return Contract{requires}, err
}

func requirements(v any, path string, depth int) ([]Requirement, error) {
	if v == nil {
		return nil, nil
	}
	list, ok := v.([]any)
	if !ok {
		return nil, fmt.Errorf("%s: want a list", path)
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("%s: alternatives within alternatives, more than %d deep", path, maxDepth)
	}
	var out []Requirement
	for i, v := range list {
		r, err := requirement(v, fmt.Sprintf("%s.%d", path, i), depth)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

func requirement(v any, path string, depth int) (r Requirement, err error) {
	m, ok := v.(map[string]any)
	if !ok {
		return r, fmt.Errorf("%s: want an object", path)
	}
	if or, ok := m["or"]; ok {
		r.Or, err = requirements(or, path+".or", depth+1)
		if err == nil && len(r.Or) == 0 {
			err = fmt.Errorf("%s.or: want at least one alternative", path)
		}
		return r, err
	}
	for _, f := range []struct {
		key  string
		into *string
	}{{"type", &r.Type}, {"slug", &r.Slug}, {"version", &r.Version}} {
		if m[f.key] == nil {
			continue
		}
		if *f.into, ok = m[f.key].(string); !ok {
			return r, fmt.Errorf("%s.%s: want a string, not %v", path, f.key, m[f.key])
		}
	}
	if !slices.Contains(Types, r.Type) {
		return r, fmt.Errorf("%s.type: want one of %s, not %q", path, strings.Join(Types, ", "), r.Type)
	}
	data, _ := m["data"].(map[string]any)
	r.Data = len(data) > 0
	return r, nil
}

// Unmet are the requirements that nothing in offers meets, in words.
func (c Contract) Unmet(offers []Offer) []string {
	var out []string
	for _, r := range c.Requires {
		if !r.met(offers) {
			out = append(out, r.String()+r.instead(offers))
		}
	}
	return out
}

func (r Requirement) met(offers []Offer) bool {
	if len(r.Or) > 0 {
		return slices.ContainsFunc(r.Or, func(r Requirement) bool { return r.met(offers) })
	}
	return !r.Data && slices.ContainsFunc(offers, func(o Offer) bool {
		return o.Type == r.Type && (r.Slug == "" || o.Slug == r.Slug) && (r.Version == "" || Satisfies(o.Version, r.Version))
	})
}

func (r Requirement) String() string {
	if len(r.Or) > 0 {
		var parts []string
		for _, alternative := range r.Or {
			parts = append(parts, alternative.String())
		}
		return strings.Join(parts, " or ")
	}
	s := r.Type
	if r.Slug != "" {
		s += " " + r.Slug
	}
	if r.Version != "" {
		s += " " + r.Version
	}
	if r.Data {
		s += " with data"
	}
	return s
}

// instead says what the device has of the kind that is asked for.
func (r Requirement) instead(offers []Offer) string {
	var has []string
	for _, o := range offers {
		if o.Type == r.Type {
			has = append(has, strings.TrimSpace(o.Slug+" "+o.Version))
		}
	}
	switch {
	case len(r.Or) > 0:
		return ""
	case len(has) == 0:
		return " (this device has none)"
	}
	return " (this device has " + strings.Join(has, ", ") + ")"
}
