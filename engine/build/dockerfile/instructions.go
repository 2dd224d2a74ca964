package dockerfile

import (
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
)

// An Instruction is one of the types below, as a pointer. String is its source,
// without here-documents.
type Instruction interface {
	Name() string // as written: "RUN", "run"
	String() string
}

// An Expander puts values in the place of a word's variables, and takes quotes
// and escapes away.
type Expander func(word string) (string, error)

// Expandable instructions have words with variables. Those that may become
// several words, as EXPOSE's, are left to the builder.
type Expandable interface {
	Expand(Expander) error
}

type source struct{ name, text string }

func (s source) Name() string   { return s.name }
func (s source) String() string { return s.text }

// A Pair is name=value.
type Pair struct{ Key, Value string }

func (p Pair) String() string { return p.Key + "=" + p.Value }

type Env struct {
	source
	Vars []Pair
}

type Label struct {
	source
	Labels  []Pair
	literal bool // there are no variables in it
}

// NewLabel is a label that no file has, and so without variables.
func NewLabel(key, value string) *Label {
	p := Pair{key, value}
	return &Label{source{"LABEL", "LABEL " + p.String()}, []Pair{p}, true}
}

type Arg struct {
	source
	Args []ArgDefault
}

// An ArgDefault is an argument and its value, nil if it has none.
type ArgDefault struct {
	Key   string
	Value *string
}

// Sources are what COPY and ADD have in common.
type Sources struct {
	Paths   []string
	Inline  []Heredoc // files whose content is in the Dockerfile
	Dest    string
	Chown   string
	Chmod   string
	Exclude []string
}

type Copy struct {
	source
	Sources
	From    string // a stage or an image; "" is the context. May have variables
	Parents bool
}

type Add struct {
	source
	Sources
	Checksum   string
	Unpack     *bool // nil where it was not said
	KeepGitDir *bool
}

// A Command is what a shell or the kernel executes.
type Command struct {
	Line  []string // the arguments, or one line for the shell
	Shell bool
	Files []Heredoc // that a line for the shell refers to
}

type Run struct {
	source
	Command
	Mounts   []*Mount // after Expand
	Network  string   // default, none or host
	Insecure bool     // --security=insecure
	Devices  []string // --device
	mounts   []string // as written
}

type Cmd struct {
	source
	Command
}

type Entrypoint struct {
	source
	Command
}

type Healthcheck struct {
	source
	Health *dockerspec.HealthcheckConfig
}

type Onbuild struct {
	source
	Expression string // with its here-documents
}

type Shell struct {
	source
	Shell []string
}

type Volume struct {
	source
	Volumes []string
}

type Expose struct {
	source
	Ports []string // sorted
}

type Workdir struct {
	source
	Path string
}

type User struct {
	source
	User string
}

type StopSignal struct {
	source
	Signal string
}

type Maintainer struct {
	source
	Maintainer string
}

func (x Expander) all(words ...*string) error {
	for _, w := range words {
		out, err := x(*w)
		if err != nil {
			return err
		}
		*w = out
	}
	return nil
}

func (x Expander) list(words []string) error {
	for i := range words {
		if err := x.all(&words[i]); err != nil {
			return err
		}
	}
	return nil
}

func (x Expander) pairs(list []Pair) error {
	for i := range list {
		if err := x.all(&list[i].Key, &list[i].Value); err != nil {
			return err
		}
	}
	return nil
}

func (x Expander) sources(s *Sources) error {
	if err := x.all(&s.Chown, &s.Chmod, &s.Dest); err != nil {
		return err
	}
	return x.list(s.Paths)
}

func (c *Env) Expand(x Expander) error        { return x.pairs(c.Vars) }
func (c *Copy) Expand(x Expander) error       { return x.sources(&c.Sources) }
func (c *Volume) Expand(x Expander) error     { return x.list(c.Volumes) }
func (c *Workdir) Expand(x Expander) error    { return x.all(&c.Path) }
func (c *User) Expand(x Expander) error       { return x.all(&c.User) }
func (c *StopSignal) Expand(x Expander) error { return x.all(&c.Signal) }

func (c *Label) Expand(x Expander) error {
	if c.literal {
		return nil
	}
	return x.pairs(c.Labels)
}

func (c *Add) Expand(x Expander) error {
	if err := x.all(&c.Checksum); err != nil {
		return err
	}
	return x.sources(&c.Sources)
}

func (c *Arg) Expand(x Expander) error {
	for i := range c.Args {
		a := &c.Args[i]
		if err := x.all(&a.Key); err != nil {
			return err
		}
		if a.Value != nil {
			v, err := x(*a.Value)
			if err != nil {
				return err
			}
			a.Value = &v
		}
	}
	return nil
}

// Expand reads the mounts, whose words may have variables everywhere.
func (c *Run) Expand(x Expander) error {
	c.Mounts = nil
	for _, text := range c.mounts {
		m, err := parseMount(text, x)
		if err != nil {
			return err
		}
		c.Mounts = append(c.Mounts, m)
	}
	return nil
}
