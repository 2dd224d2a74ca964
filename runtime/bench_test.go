package runtime

import (
	"fmt"
	"testing"
)

func BenchmarkStart(b *testing.B) {
	x := newBox(b)
	c := x.container("true")
	c.Log = Log{}
	c.Spec.Linux.Seccomp = dockerSeccomp(b, c.Spec)
	for b.Loop() {
		x.start(c)
		if _, err := x.Wait(x.ctx, c.ID); err != nil {
			b.Fatal(err)
		}
		if err := x.Delete(x.ctx, c.ID); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkExec(b *testing.B) {
	x := newBox(b)
	c := x.container("sleep", "1000")
	c.Spec.Linux.Seccomp = dockerSeccomp(b, c.Spec)
	x.start(c)
	p := *c.Spec.Process
	p.Args = []string{"true"}
	n := 0
	for b.Loop() {
		n++
		id := fmt.Sprint("e", n)
		_, s, err := x.Exec(x.ctx, c.ID, Exec{ID: id, Process: &p})
		if err != nil {
			b.Fatal(err)
		}
		s.Close()
		if _, err := x.WaitExec(x.ctx, c.ID, id); err != nil {
			b.Fatal(err)
		}
	}
}
