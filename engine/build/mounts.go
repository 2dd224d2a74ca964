package build

import (
	"context"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/minke-os/minke/engine/build/dockerfile"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// mounts reads RUN --mount. The note goes behind the command in the history,
// as a comment of the shell: the layer depends on what was mounted, so a bind's
// content counts for the cache; that of caches and secrets does not, as in
// BuildKit.
func (st *stage) mounts(ctx context.Context, c *dockerfile.Run) (mounts []RunMount, note string, err error) {
	for _, asked := range c.Mounts {
		m, digest, err := st.mount(ctx, asked)
		if err != nil {
			return nil, "", fmt.Errorf("RUN --mount=type=%s: %w", asked.Type, err)
		}
		if m == nil {
			continue // an optional secret that is not there
		}
		mounts = append(mounts, *m)
		note += fmt.Sprintf(" # --mount=type=%s,target=%s", m.Type, m.Target)
		if digest != "" {
			note += "," + digest
		}
	}
	return mounts, note, nil
}

func (st *stage) mount(ctx context.Context, asked *dockerfile.Mount) (*RunMount, string, error) {
	m := &RunMount{
		Type: asked.Type, ReadOnly: asked.ReadOnly, Size: asked.Size, Sharing: asked.Sharing,
		UID: number(asked.UID), GID: number(asked.GID),
	}
	if asked.Type == dockerfile.Secret {
		return st.secret(m, asked)
	}
	if asked.Type == dockerfile.SSH {
		if asked.Required {
			return nil, "", errdef.Unsupported.Errorf("there is no agent: the classic builder's protocol cannot forward one; pass a key with --secret instead")
		}
		return nil, "", nil
	}
	if asked.Target == "" {
		return nil, "", errdef.Invalid.Errorf("target is missing")
	}
	if m.Target = joined(st.config.Config.WorkingDir, asked.Target); m.Target == "/" {
		return nil, "", errdef.Invalid.Errorf("invalid mount target %q", asked.Target)
	}
	switch asked.Type {
	case dockerfile.Tmpfs:
		return m, "", nil
	case dockerfile.Cache:
		return st.cacheMount(ctx, m, asked)
	}
	digest, err := st.content(ctx, m, asked)
	return m, digest, err
}

// cacheMount names the directory after its ID, else its target, and what it
// begins with.
func (st *stage) cacheMount(ctx context.Context, m *RunMount, asked *dockerfile.Mount) (*RunMount, string, error) {
	if m.CacheID = asked.ID; m.CacheID == "" {
		m.CacheID = path.Clean(asked.Target)
	}
	m.Mode = mode(asked.Mode, 0o755)
	if asked.From == "" {
		if asked.Source != "" {
			return nil, "", errdef.Invalid.Errorf("source needs from")
		}
		return m, "", nil
	}
	_, err := st.content(ctx, m, asked)
	m.CacheID += "@" + string(m.Layers)
	return m, "", err
}

// content finds the files that a mount shows and gives a digest of them.
func (st *stage) content(ctx context.Context, m *RunMount, asked *dockerfile.Mount) (string, error) {
	m.Path = path.Clean("/" + asked.Source)
	var from *source
	var err error
	if asked.From == "" {
		from = st.files
		m.Layers, err = st.visibleContext(ctx)
	} else {
		if m.Layers, err = st.layersOf(ctx, asked.From); err == nil {
			from, err = st.of(m.Layers)
		}
	}
	if err != nil {
		return "", err
	}
	if asked.From != "" && m.Path == "/" {
		return string(m.Layers), nil // reading all of an image would take long
	}
	cp := &copying{stage: st, verb: "RUN", view: from}
	if err := cp.source(from, dot(strings.TrimPrefix(m.Path, "/")), false); err != nil {
		return "", err
	}
	return cp.hashes[0], nil
}

// visibleContext is a layer of the context without what .dockerignore excludes.
// Most clients do not send that in the first place.
func (b *builder) visibleContext(ctx context.Context) (oci.ChainID, error) {
	if b.files.ignore == nil {
		return b.filesChain, nil
	}
	b.visible.Do(func() {
		b.visibleChain, b.visibleErr = b.withoutIgnored(ctx)
	})
	return b.visibleChain, b.visibleErr
}

func (b *builder) withoutIgnored(ctx context.Context) (oci.ChainID, error) {
	empty, err := b.of("")
	if err != nil {
		return "", err
	}
	cp := &copying{stage: &stage{builder: b}, verb: "RUN", view: empty, created: map[string]bool{}}
	if err := cp.directory(b.files, "."); err != nil {
		return "", err
	}
	l, err := b.Store.AddPacked(ctx, "", cp.write)
	return l.ChainID, err
}

// secret is one that the client sent along.
func (st *stage) secret(m *RunMount, asked *dockerfile.Mount) (*RunMount, string, error) {
	id := asked.ID
	if id == "" {
		id = asked.Source
	}
	if id == "" {
		id = path.Base(asked.Target)
	}
	text, ok := st.o.Secrets[id]
	if !ok {
		if asked.Required {
			return nil, "", errdef.Invalid.Errorf("secret %s: not found; give it with \"minke build --secret id=%s,src=FILE\"", id, id)
		}
		return nil, "", nil
	}
	m.Secret, m.Mode, m.Target = text, mode(asked.Mode, 0o400), asked.Target
	if asked.Env != nil {
		if m.Env = *asked.Env; m.Env == "" {
			m.Env = id
		}
	}
	switch {
	case m.Target != "":
		m.Target = joined(st.config.Config.WorkingDir, m.Target)
	case m.Env == "":
		m.Target = path.Join("/run/secrets", path.Base(id))
	}
	return m, "", nil
}

func number(n *uint64) int {
	if n == nil {
		return 0
	}
	return int(*n)
}

func mode(n *uint64, otherwise os.FileMode) os.FileMode {
	if n == nil {
		return otherwise
	}
	return os.FileMode(*n & 0o777)
}
