package build

import (
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"github.com/minke-os/minke/engine/build/dockerfile"
	"github.com/minke-os/minke/oci"
)

// predefined may be given without an ARG instruction, and do not count for
// the cache unless there is one.
var predefined = []string{
	"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "FTP_PROXY", "ftp_proxy",
	"NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy",
}

// args are the build arguments: those given with the request, those before the
// first FROM, and those that the current stage has declared.
type args struct {
	given    map[string]*string
	platform map[string]string  // TARGETARCH and its family
	globals  map[string]*string // seen by FROM, and by ARG without a default
	declared map[string]*string // in this stage; nil without a value
	consumed map[string]bool
}

func newArgs(o Options) *args {
	a := &args{given: o.Args, platform: map[string]string{}, globals: map[string]*string{}, consumed: map[string]bool{}}
	for prefix, p := range map[string]oci.Platform{"TARGET": o.Platform, "BUILD": oci.Host()} {
		a.platform[prefix+"PLATFORM"] = p.String()
		a.platform[prefix+"OS"] = p.OS
		a.platform[prefix+"ARCH"] = p.Architecture
		a.platform[prefix+"VARIANT"] = p.Variant
	}
	return a
}

// stage is the arguments at the beginning of a stage.
func (a *args) stage() *args {
	st := *a
	st.declared, st.consumed = map[string]*string{}, map[string]bool{}
	return &st
}

// global declares arguments before the first FROM.
func (a *args) global(c *dockerfile.Arg, lex *shell.Lex) error {
	err := c.Expand(func(word string) (string, error) {
		out, _, err := lex.ProcessWord(word, shell.EnvsFromSlice(a.forFrom()))
		return out, err
	})
	if err != nil {
		return err
	}
	for _, arg := range c.Args {
		a.globals[arg.Key] = a.choose(arg.Key, arg.Value)
	}
	return nil
}

// declare is ARG in a stage; it gives the value, nil if there is none.
func (a *args) declare(name string, def *string) *string {
	if def == nil {
		def = a.globals[name]
	}
	if v, ok := a.platform[name]; ok && def == nil {
		def = &v
	}
	v := a.choose(name, def)
	a.declared[name] = v
	return v
}

func (a *args) choose(name string, def *string) *string {
	v, ok := a.given[name]
	if !ok {
		return def
	}
	a.consumed[name] = true
	if v == nil {
		return def
	}
	return v
}

// forFrom is what FROM may use, as an environment.
func (a *args) forFrom() []string {
	env := pairs(a.globals)
	for _, k := range sorted(a.platform) {
		if _, ok := a.globals[k]; !ok {
			env = append(env, k+"="+a.platform[k])
		}
	}
	return env
}

// env is the declared arguments that the image's environment does not hide.
func (a *args) env(image []string) []string {
	return slices.DeleteFunc(pairs(a.declared), func(kv string) bool { return defines(image, kv) })
}

// proxies are predefined arguments that were given but not declared.
func (a *args) proxies(image []string) []string {
	var env []string
	for _, name := range predefined {
		v, given := a.given[name]
		if _, declared := a.declared[name]; !given || v == nil || declared {
			continue
		}
		a.consumed[name] = true
		if kv := name + "=" + *v; !defines(image, kv) {
			env = append(env, kv)
		}
	}
	return env
}

// unused are the arguments given that no ARG asked for.
func (a *args) unused() []string {
	var names []string
	for _, name := range sorted(a.given) {
		if !a.consumed[name] && !slices.Contains(predefined, name) {
			names = append(names, name)
		}
	}
	return names
}

func pairs(m map[string]*string) []string {
	var env []string
	for _, k := range sorted(m) {
		if m[k] != nil {
			env = append(env, k+"="+*m[k])
		}
	}
	return env
}

// defines reports whether env has the variable of kv.
func defines(env []string, kv string) bool {
	name, _, _ := strings.Cut(kv, "=")
	return slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
}

// setEnv sets or replaces variables, in order.
func setEnv(env []string, name, value string) []string {
	kv := name + "=" + value
	for i, e := range env {
		if strings.HasPrefix(e, name+"=") {
			env = slices.Clone(env)
			env[i] = kv
			return env
		}
	}
	return append(slices.Clip(env), kv)
}
