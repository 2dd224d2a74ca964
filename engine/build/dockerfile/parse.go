package dockerfile

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
)

// instructionNames are in the order of their use, for of two that are equally
// near to a misspelt one the first is suggested.
var instructionNames = []string{
	"RUN", "COPY", "FROM", "ENV", "ARG", "WORKDIR", "CMD", "ADD", "ENTRYPOINT", "EXPOSE", "LABEL", "USER", "VOLUME",
	"HEALTHCHECK", "SHELL", "ONBUILD", "STOPSIGNAL", "MAINTAINER",
}

// instruction reads all but FROM.
func (s statement) instruction() (Instruction, error) {
	src := source{s.name, s.source}
	switch strings.ToUpper(s.name) {
	case "ADD":
		return s.add(src)
	case "ARG":
		return s.arg(src)
	case "CMD":
		c, err := s.command()
		return &Cmd{src, c}, err
	case "COPY":
		return s.copy(src)
	case "ENTRYPOINT":
		c, err := s.command()
		return &Entrypoint{src, c}, err
	case "ENV":
		vars, err := s.pairs()
		return &Env{src, vars}, err
	case "EXPOSE":
		ports, err := s.some(s.fields())
		slices.Sort(ports)
		return &Expose{src, ports}, err
	case "HEALTHCHECK":
		return s.healthcheck(src)
	case "LABEL":
		labels, err := s.pairs()
		return &Label{source: src, Labels: labels}, err
	case "MAINTAINER":
		name, err := s.one()
		return &Maintainer{src, name}, err
	case "ONBUILD":
		return s.onbuild(src)
	case "RUN":
		return s.run(src)
	case "SHELL":
		return s.shell(src)
	case "STOPSIGNAL":
		s.flags = nil // as BuildKit does
		signal, err := s.one()
		return &StopSignal{src, signal}, err
	case "USER":
		user, err := s.one()
		return &User{src, user}, err
	case "VOLUME":
		return s.volume(src)
	case "WORKDIR":
		dir, err := s.one()
		return &Workdir{src, dir}, err
	}
	return nil, didYouMean(fmt.Errorf("unknown instruction: %s", s.name), s.name, instructionNames, false)
}

// errorf is about the instruction, whose name comes first.
func (s statement) errorf(format string, args ...any) error {
	return fmt.Errorf(strings.ToUpper(s.name)+" "+format, args...)
}

// one is the argument of instructions that take all of the line.
func (s statement) one() (string, error) {
	if s.args == "" {
		return "", s.errorf("requires exactly one argument")
	}
	return s.args, s.into(nil)
}

// some are the arguments of instructions that want one at least.
func (s statement) some(args []string) ([]string, error) {
	if len(args) == 0 {
		return nil, s.errorf("requires at least one argument")
	}
	return args, s.into(nil)
}

func (s statement) from() (Stage, error) {
	st := Stage{Source: s.source}
	args := s.fields()
	switch {
	case len(args) == 3 && strings.EqualFold(args[1], "as"):
		if st.Name = strings.ToLower(args[2]); !isStageName(st.Name) {
			return st, fmt.Errorf("invalid name for build stage: %q, name can't start with a number or contain symbols", args[2])
		}
	case len(args) != 1:
		return st, s.errorf("requires either one or three arguments")
	}
	st.Base = args[0]
	return st, s.into(flags{"platform": &st.Platform})
}

func isStageName(s string) bool {
	letter := func(c rune) bool { return c >= 'a' && c <= 'z' }
	rest := strings.TrimLeftFunc(s, func(c rune) bool {
		return letter(c) || c >= '0' && c <= '9' || strings.ContainsRune("-_.", c)
	})
	return s != "" && letter(rune(s[0])) && rest == ""
}

// pairs reads "a=1 b=2", and the old "a 1".
func (s statement) pairs() ([]Pair, error) {
	words, err := s.some(s.words())
	if err != nil {
		return nil, err
	}
	if !strings.Contains(words[0], "=") {
		key, value := cutSpace(s.args)
		if value == "" {
			return nil, s.errorf("must have two arguments")
		}
		return []Pair{{key, value}}, nil
	}
	var list []Pair
	for _, w := range words {
		key, value, ok := strings.Cut(w, "=")
		switch {
		case !ok:
			return nil, fmt.Errorf("Syntax error - can't find = in %q. Must be of the form: name=value", w)
		case key == "":
			return nil, s.errorf("names can not be blank")
		}
		list = append(list, Pair{key, value})
	}
	return list, nil
}

func (s statement) arg(src source) (*Arg, error) {
	words := s.words()
	if len(words) == 0 {
		return nil, s.errorf("requires at least one argument")
	}
	c := &Arg{source: src}
	for _, w := range words {
		key, value, ok := strings.Cut(w, "=")
		a := ArgDefault{Key: key}
		if ok {
			a.Value = &value
		}
		if key == "" {
			return nil, s.errorf("names can not be blank")
		}
		c.Args = append(c.Args, a)
	}
	return c, nil
}

func (s statement) add(src source) (*Add, error) {
	c := &Add{source: src}
	f := c.Sources.flags()
	f["checksum"], f["unpack"], f["keep-git-dir"] = &c.Checksum, &c.Unpack, &c.KeepGitDir
	return c, s.sources(f, &c.Sources)
}

func (s statement) copy(src source) (*Copy, error) {
	c := &Copy{source: src}
	f := c.Sources.flags()
	f["from"], f["parents"] = &c.From, &c.Parents
	return c, s.sources(f, &c.Sources)
}

// flags that COPY and ADD have in common. Without BuildKit's way of merging
// layers, --link is COPY as ever.
func (c *Sources) flags() flags {
	return flags{"chown": &c.Chown, "chmod": &c.Chmod, "exclude": &c.Exclude, "link": new(bool)}
}

func (s statement) sources(f flags, to *Sources) error {
	args, err := s.list()
	if err != nil {
		return err
	}
	if len(args) < 2 {
		return s.errorf("requires at least two arguments, but only one was provided. Destination could not be determined")
	}
	if err := s.into(f); err != nil {
		return err
	}
	last := len(args) - 1
	to.Dest = args[last]
	if _, is, _ := announced(to.Dest); is {
		return s.errorf("cannot accept a heredoc as a destination")
	}
	for _, path := range args[:last] {
		h, is, _ := announced(path)
		if !is {
			to.Paths = append(to.Paths, path)
			continue
		}
		for _, doc := range s.docs {
			if doc.Name == h.Name { // the last of them, if there are several
				h.Text = doc.Text
			}
		}
		to.Inline = append(to.Inline, h)
	}
	return nil
}

// commandWith reads a line for the shell or an array, behind flags.
func (s statement) commandWith(f flags) (Command, error) {
	if err := s.into(f); err != nil {
		return Command{}, err
	}
	list, isArray, err := s.array()
	c := Command{Line: list, Shell: !isArray, Files: s.docs}
	if !isArray && s.args != "" {
		c.Line = []string{s.args}
	}
	return c, err
}

func (s statement) command() (Command, error) { return s.commandWith(nil) }

func (s statement) run(src source) (*Run, error) {
	security := "sandbox"
	c := &Run{source: src, Network: "default"}
	var err error
	c.Command, err = s.commandWith(flags{"mount": &c.mounts, "network": &c.Network, "security": &security, "device": &c.Devices})
	if err != nil {
		return nil, err
	}
	switch c.Network {
	case "default", "none", "host":
	default:
		return nil, fmt.Errorf("invalid network mode %q", c.Network)
	}
	if c.Insecure = security == "insecure"; !c.Insecure && security != "sandbox" {
		return nil, fmt.Errorf("security %q is not valid", security)
	}
	for _, text := range c.mounts {
		if err := checkMount(text); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (s statement) shell(src source) (*Shell, error) {
	c, err := s.command()
	switch {
	case err != nil:
		return nil, err
	case len(c.Line) == 0:
		return nil, s.errorf("requires at least one argument")
	case c.Shell:
		return nil, s.errorf("requires the arguments to be in JSON form: SHELL [\"/bin/sh\", \"-c\"]")
	}
	return &Shell{src, c.Line}, nil
}

func (s statement) volume(src source) (*Volume, error) {
	args, err := s.list()
	if err == nil {
		args, err = s.some(args)
	}
	if err != nil {
		return nil, err
	}
	c := &Volume{source: src}
	for _, v := range args {
		if v = strings.TrimSpace(v); v == "" {
			return nil, s.errorf("specified can not be an empty string")
		}
		c.Volumes = append(c.Volumes, v)
	}
	return c, nil
}

func (s statement) onbuild(src source) (*Onbuild, error) {
	if s.args == "" {
		return nil, s.errorf("requires at least one argument")
	}
	if err := s.into(nil); err != nil {
		return nil, err
	}
	switch trigger, _ := cutSpace(strings.ToUpper(s.args)); trigger {
	case "ONBUILD":
		return nil, errors.New("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
	case "MAINTAINER", "FROM":
		return nil, fmt.Errorf("%s isn't allowed as an ONBUILD trigger", trigger)
	}
	sub := split(s.args, s.escape)
	sub.docs = s.docs
	if _, err := sub.instruction(); err != nil {
		return nil, err
	}
	text := s.args
	for _, doc := range s.docs {
		text += "\n" + doc.Text + doc.Name
	}
	return &Onbuild{src, text}, nil
}

func (s statement) healthcheck(src source) (*Healthcheck, error) {
	if s.args == "" {
		return nil, s.errorf("requires at least one argument")
	}
	h := &dockerspec.HealthcheckConfig{}
	i := strings.IndexFunc(s.args, unicode.IsSpace)
	if i < 0 {
		i = len(s.args)
	}
	kind := strings.ToUpper(s.args[:i])
	s.args = strings.TrimSpace(s.args[i:])
	switch kind {
	case "NONE":
		if s.args != "" {
			return nil, s.errorf("NONE takes no arguments")
		}
		h.Test = []string{kind}
		return &Healthcheck{src, h}, nil
	case "CMD":
	default:
		return nil, fmt.Errorf("Unknown type %q in HEALTHCHECK (try CMD)", kind)
	}
	var interval, timeout, startPeriod, startInterval, retries string
	c, err := s.commandWith(flags{
		"interval": &interval, "timeout": &timeout, "start-period": &startPeriod, "start-interval": &startInterval, "retries": &retries,
	})
	if err != nil {
		return nil, err
	}
	if len(c.Line) == 0 {
		return nil, errors.New("Missing command after HEALTHCHECK CMD")
	}
	if c.Shell {
		kind = "CMD-SHELL"
	}
	h.Test = append([]string{kind}, c.Line...)
	for _, d := range []struct {
		name, text string
		to         *time.Duration
	}{
		{"interval", interval, &h.Interval}, {"timeout", timeout, &h.Timeout},
		{"start-period", startPeriod, &h.StartPeriod}, {"start-interval", startInterval, &h.StartInterval},
	} {
		if *d.to, err = pause(d.name, d.text); err != nil {
			return nil, err
		}
	}
	if retries != "" {
		if h.Retries, err = strconv.Atoi(retries); err != nil || h.Retries < 0 {
			return nil, fmt.Errorf("--retries=%s is no number of attempts; give 0 or more", retries)
		}
	}
	return &Healthcheck{src, h}, nil
}

// pause reads a duration, of which Docker takes 0 and a millisecond or more.
func pause(flag, text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, err
	}
	if d != 0 && d < time.Millisecond {
		return 0, fmt.Errorf("Interval %q cannot be less than %s", flag, time.Millisecond)
	}
	return d, nil
}
