package build

import (
	"bytes"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"github.com/minke-os/minke/internal/errdef"
)

// A plan is a parsed Dockerfile.
type plan struct {
	warnings []parser.Warning
	global   []instructions.ArgCommand // before the first FROM
	stages   []instructions.Stage
	lex      *shell.Lex
}

func parsePlan(dockerfile []byte) (*plan, error) {
	if len(bytes.TrimSpace(dockerfile)) == 0 {
		return nil, errdef.Invalid.Errorf("the Dockerfile is empty")
	}
	tree, err := parser.Parse(bytes.NewReader(dockerfile))
	if err != nil {
		return nil, errdef.Invalid.Wrap(err)
	}
	stages, global, err := instructions.Parse(tree.AST, nil)
	if err != nil {
		return nil, errdef.Invalid.Wrap(err)
	}
	if len(stages) == 0 {
		return nil, errdef.Invalid.Errorf("no build stage in current context: the Dockerfile has no FROM")
	}
	return &plan{warnings: tree.Warnings, global: global, stages: stages, lex: shell.NewLex(tree.EscapeToken)}, nil
}

// prepare cuts the plan at the target and adds the labels of the request.
func (p *plan) prepare(o Options) error {
	if o.Target != "" {
		i, ok := p.find(o.Target)
		if !ok {
			return errdef.Invalid.Errorf("failed to reach build target %s in Dockerfile", o.Target)
		}
		p.stages = p.stages[:i+1]
	}
	last := &p.stages[len(p.stages)-1]
	for _, k := range sorted(o.Labels) {
		last.AddCommand(instructions.NewLabelCommand(k, o.Labels[k], true))
	}
	return nil
}

// find gives a stage by its name or number.
func (p *plan) find(name string) (int, bool) {
	if i, ok := instructions.HasStage(p.stages, name); ok {
		return i, true
	}
	return stageNumber(name, len(p.stages))
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
	n := len(p.global) + len(p.stages)
	for _, st := range p.stages {
		n += len(st.Commands)
	}
	return n
}
