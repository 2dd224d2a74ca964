package build

import (
	"bytes"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"github.com/minke-os/minke/engine/build/dockerfile"
	"github.com/minke-os/minke/internal/errdef"
)

// A plan is a parsed Dockerfile.
type plan struct {
	*dockerfile.File
	lex *shell.Lex
}

func parsePlan(text []byte) (*plan, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, errdef.Invalid.Errorf("the Dockerfile is empty")
	}
	f, err := dockerfile.Parse(text)
	if err != nil {
		return nil, errdef.Invalid.Wrap(err)
	}
	if len(f.Stages) == 0 {
		return nil, errdef.Invalid.Errorf("no build stage in current context: the Dockerfile has no FROM")
	}
	return &plan{f, shell.NewLex(f.Escape)}, nil
}

// prepare cuts the plan at the target and adds the labels of the request.
func (p *plan) prepare(o Options) error {
	if o.Target != "" {
		i, ok := p.find(o.Target)
		if !ok {
			return errdef.Invalid.Errorf("failed to reach build target %s in Dockerfile", o.Target)
		}
		p.Stages = p.Stages[:i+1]
	}
	last := &p.Stages[len(p.Stages)-1]
	for _, k := range sorted(o.Labels) {
		last.Commands = append(last.Commands, dockerfile.NewLabel(k, o.Labels[k]))
	}
	return nil
}

// find gives a stage by its name or number.
func (p *plan) find(name string) (int, bool) {
	for i, st := range p.Stages {
		if strings.EqualFold(st.Name, name) {
			return i, true
		}
	}
	return stageNumber(name, len(p.Stages))
}

// stageNumber reads a number below n.
func stageNumber(s string, n int) (int, bool) {
	if s == "" || len(s) > 4 || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	i := 0
	for _, d := range s {
		i = i*10 + int(d-'0')
	}
	return i, i < n
}

// steps is what "Step 1/n" counts to.
func (p *plan) steps() int {
	n := len(p.Global) + len(p.Stages)
	for _, st := range p.Stages {
		n += len(st.Commands)
	}
	return n
}
