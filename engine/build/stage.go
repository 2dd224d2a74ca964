package build

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"github.com/minke-os/minke/engine/build/dockerfile"
	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// A stage is what a FROM begins: an image that grows with each instruction.
type stage struct {
	*builder
	index int
	name  string
	plan  *dockerfile.Stage
	lex   *shell.Lex
	args  *args
	own   io.Writer     // for what the stage says
	out   Output        // for its commands
	step  int           // that was announced last
	done  chan struct{} // closed when the stage is built, or never will be

	image  oci.ImageID // "" until the first instruction after FROM scratch
	base   oci.ImageID
	config dockerspec.DockerOCIImage
	chain  oci.ChainID
	built  bool // all went well
	cmdSet bool // CMD was given in this stage, so ENTRYPOINT leaves it alone

	cache   []store.Image        // that may be hit; nil once something was not
	allowed map[oci.ImageID]bool // of these only; nil is all
}

// build works through the stage's instructions.
func (st *stage) build(ctx context.Context) error {
	if err := st.takeSlot(ctx); err != nil {
		return err
	}
	defer st.giveSlot()
	if err := st.from(ctx); err != nil {
		return err
	}
	for _, c := range st.plan.Commands {
		if err := ctx.Err(); err != nil {
			return err
		}
		st.announce(c.String())
		if err := st.do(ctx, c); err != nil {
			return err
		}
		st.printf(" ---> %s\n", st.image.Short())
	}
	if st.image == "" {
		return errdef.Invalid.Errorf("No image was generated. Is your Dockerfile empty?")
	}
	if st.out.ImageID != nil {
		st.out.ImageID(st.image)
	}
	st.built = true
	return nil
}

func (st *stage) takeSlot(ctx context.Context) error {
	select {
	case st.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (st *stage) giveSlot() { <-st.slots }

// await waits for an earlier stage. Meanwhile others may work, for it may be
// just those that it waits for.
func (st *stage) await(ctx context.Context, earlier *stage) error {
	st.giveSlot()
	select {
	case <-earlier.done:
	case <-ctx.Done():
	}
	st.slots <- struct{}{} // soon: who has one either works, and ends with ctx, or waits without
	if !earlier.built {
		<-ctx.Done() // when the other's error has become the build's
	}
	return ctx.Err()
}

func (st *stage) announce(text string) {
	st.step++
	st.printf("Step %d/%d : %s\n", st.step, st.steps, text)
}

func (st *stage) printf(format string, args ...any) {
	fmt.Fprintf(st.own, format, args...)
}

// from begins the stage.
func (st *stage) from(ctx context.Context) error {
	st.announce(st.plan.Source)
	if err := st.setBase(ctx, st.plan); err != nil {
		return err
	}
	if err := st.openCache(); err != nil {
		return err
	}
	if !defines(st.config.Config.Env, defaultPath) {
		st.config.Config.Env = append(st.config.Config.Env, defaultPath)
	}
	if err := st.trigger(ctx); err != nil {
		return err
	}
	st.printf(" ---> %s\n", st.image.Short())
	return nil
}

// setBase finds the image that FROM names: an earlier stage, scratch, an image
// that is here, or one to pull.
func (st *stage) setBase(ctx context.Context, s *dockerfile.Stage) error {
	name, err := st.expandFrom(s.Base)
	if err != nil {
		return err
	}
	if name == "" {
		return errdef.Invalid.Errorf("base name (%s) should not be blank", s.Base)
	}
	platform := st.o.Platform
	if s.Platform != "" {
		text, err := st.expandFrom(s.Platform)
		if err != nil {
			return err
		}
		if platform, err = oci.ParsePlatform(text); err != nil {
			return errdef.Invalid.Wrap(err)
		}
	}
	if earlier := st.earlier(name); earlier != nil {
		if err := st.await(ctx, earlier); err != nil {
			return err
		}
		return st.adopt(earlier.image)
	}
	if name == "scratch" {
		st.config.OS, st.config.Architecture, st.config.Variant = platform.OS, platform.Architecture, platform.Variant
		st.config.RootFS.Type = "layers"
		return nil
	}
	id, err := st.find(ctx, name, platform)
	if err != nil {
		return err
	}
	return st.adopt(id)
}

func (st *stage) expandFrom(word string) (string, error) {
	out, _, err := st.lex.ProcessWord(word, shell.EnvsFromSlice(st.args.forFrom()))
	return out, err
}

// earlier finds a stage above this one by name.
func (st *stage) earlier(name string) *stage {
	for _, other := range slices.Backward(st.stages[:st.index]) {
		if other.name != "" && strings.EqualFold(other.name, name) {
			return other
		}
	}
	return nil
}

// find gives an image, pulling it if it is not here.
func (st *stage) find(ctx context.Context, name string, p oci.Platform) (oci.ImageID, error) {
	id, _, err := st.Store.Resolve(name)
	ref, perr := oci.ParseReference(name)
	anew := perr == nil && (st.o.Pull || err == nil && !st.suits(id, p)) // an ID cannot be pulled
	if st.Pull == nil || err == nil && !anew || err != nil && !errdef.Is(err, errdef.NotFound) {
		return id, err
	}
	if perr != nil {
		return "", errdef.Invalid.Wrap(perr)
	}
	return st.Pull(ctx, ref, p, st.out.Stdout)
}

// suits reports whether an image runs on a platform, if that was asked for.
func (st *stage) suits(id oci.ImageID, p oci.Platform) bool {
	img, err := st.Store.Image(id)
	if err != nil || p == oci.Host() {
		return true
	}
	is := oci.Platform{OS: img.Config.OS, Architecture: img.Config.Architecture, Variant: img.Config.Variant}
	return slices.Contains(p.Runs(), is.Canonical())
}

// adopt makes an image the current one.
func (st *stage) adopt(id oci.ImageID) error {
	img, err := st.Store.Image(id)
	if err != nil {
		return err
	}
	st.become(img)
	st.base = id
	return nil
}

func (st *stage) become(img store.Image) {
	st.image, st.config = img.ID, img.Config
	st.chain = ""
	for _, d := range img.Config.RootFS.DiffIDs {
		st.chain = oci.Chain(st.chain, oci.DiffID(d))
	}
}

// trigger runs what the base has noted with ONBUILD.
func (st *stage) trigger(ctx context.Context) error {
	lines := st.config.Config.OnBuild
	st.config.Config.OnBuild = nil
	if len(lines) == 0 {
		return nil
	}
	plural := ""
	if len(lines) > 1 {
		plural = "s"
	}
	st.printf("# Executing %d build trigger%s\n", len(lines), plural)
	for _, line := range lines {
		c, err := parseLine(line)
		if err != nil {
			return fmt.Errorf("ONBUILD %s: %w", line, err)
		}
		if err := st.do(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func parseLine(line string) (dockerfile.Instruction, error) {
	list, _, err := dockerfile.Instructions(line)
	if err == nil && len(list) != 1 {
		err = errdef.Invalid.Errorf("want one instruction")
	}
	if err != nil {
		return nil, errdef.Invalid.Wrap(err)
	}
	return list[0], nil
}

// env is what words in instructions may refer to.
func (st *stage) env() shell.EnvGetter {
	return shell.EnvsFromSlice(append(st.args.env(st.config.Config.Env), st.config.Config.Env...))
}

func (st *stage) expand(word string) (string, error) {
	out, _, err := st.lex.ProcessWord(word, st.env())
	return out, err
}

// do carries out one instruction.
func (st *stage) do(ctx context.Context, c dockerfile.Instruction) error {
	if e, ok := c.(dockerfile.Expandable); ok {
		if err := e.Expand(st.expand); err != nil {
			return errdef.Invalid.Errorf("failed to process %q: %w", c.String(), err)
		}
	}
	switch c := c.(type) {
	case *dockerfile.Run:
		return st.run(ctx, c)
	case *dockerfile.Copy:
		return st.copy(ctx, c)
	case *dockerfile.Add:
		return st.add(ctx, c)
	case *dockerfile.Workdir:
		return st.workdir(ctx, c)
	case *dockerfile.Arg:
		return st.commit(ctx, st.nop(st.argComment(c)), nil)
	}
	if _, ok := c.(*dockerfile.Healthcheck); ok {
		if old := st.config.Config.Healthcheck; old != nil && len(old.Test) > 0 && old.Test[0] != "NONE" {
			st.printf("Note: overriding previous HEALTHCHECK: %v\n", old.Test)
		}
	}
	comment, err := change(&st.config, c, st.words, st.cmdSet)
	if err != nil {
		return err
	}
	if _, ok := c.(*dockerfile.Cmd); ok {
		st.cmdSet = true
	}
	return st.commit(ctx, st.nop(comment), nil)
}

func (st *stage) words(word string) ([]string, error) { return st.lex.ProcessWords(word, st.env()) }

// argComment declares arguments and gives the history line, which has the
// defaults that the Dockerfile gives, not the values, lest secrets show.
func (st *stage) argComment(c *dockerfile.Arg) string {
	var sb strings.Builder
	sb.WriteString("ARG")
	for _, arg := range c.Args {
		st.args.declare(arg.Key, arg.Value)
		sb.WriteString(" " + arg.Key)
		if arg.Value != nil {
			sb.WriteString("=" + *arg.Value)
		}
	}
	return sb.String()
}

// nop is the history line of an instruction that runs nothing.
func (st *stage) nop(comment string) string {
	return strings.Join(shellOf(st.config.Config), " ") + " #(nop)  " + comment
}

func shellOf(c dockerspec.DockerOCIImageConfig) []string {
	if len(c.Shell) > 0 {
		return c.Shell
	}
	return []string{"/bin/sh", "-c"}
}

// commit makes an image of the current configuration, unless the cache has
// it, and goes on from there.
func (st *stage) commit(ctx context.Context, createdBy string, layer *store.Layer) error {
	if layer == nil && st.hit(ctx, createdBy) {
		return nil
	}
	return st.commitAt(ctx, createdBy, layer, st.now)
}

func (st *stage) commitAt(ctx context.Context, createdBy string, layer *store.Layer, created time.Time) error {
	config := st.config
	config.Created = &created
	config.History = append(slices.Clip(config.History), v1.History{
		Created: &created, CreatedBy: createdBy, Author: config.Author, EmptyLayer: layer == nil,
	})
	if layer != nil {
		config.RootFS.DiffIDs = append(slices.Clip(config.RootFS.DiffIDs), digest.Digest(layer.DiffID))
	}
	if config.RootFS.DiffIDs == nil {
		config.RootFS.DiffIDs = []digest.Digest{}
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return err
	}
	id, err := st.Store.PutImage(ctx, raw, st.image)
	if err != nil {
		return err
	}
	img, err := st.Store.Image(id)
	if err != nil {
		return err
	}
	st.become(img)
	return nil
}
