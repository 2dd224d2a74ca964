package archive

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/minke-os/minke/engine/delta"
	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

const (
	maxDocument  = 8 << 20  // bytes of one JSON file
	maxDocuments = 64 << 20 // bytes of all
)

// LoadOptions say what to load. The zero value loads all images and, of those
// that are there for several platforms, the one for this host.
type LoadOptions struct {
	Platform oci.Platform   // load only images for it
	Progress func(Progress) // may be nil
}

// Load adds the images of an archive to the store.
func Load(ctx context.Context, s *store.Store, r io.Reader, o LoadOptions) (err error) {
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	release, err := s.Lease("")
	if err != nil {
		return err
	}
	defer release()
	l := &loading{ctx: ctx, s: s, progress: o.Progress, platform: o.Platform,
		docs: map[string][]byte{}, layers: map[string]oci.DiffID{}, links: map[string]string{},
		unplaced: map[oci.DiffID]*store.Unpacked{}, deltas: map[oci.DiffID]loadedDelta{}}
	defer l.closeUnplaced()
	defer func() { err = errors.Join(err, l.closeDeltas(err == nil)) }()
	if err := l.read(r); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	images, err := l.plan()
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	if images, err = l.wanted(images); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	for _, img := range images {
		if err := l.finish(img); err != nil {
			return fmt.Errorf("load: %w", err)
		}
	}
	return s.Settle()
}

// wanted are the images for the platform that was asked for.
func (l *loading) wanted(images []image) ([]image, error) {
	if l.platform == (oci.Platform{}) {
		return images, nil
	}
	var out []image
	for _, img := range images {
		var p oci.Platform
		if json.Unmarshal(l.docs[img.config], &p) == nil && slices.Contains(l.platform.Runs(), p.Canonical()) {
			out = append(out, img)
		}
	}
	if len(out) == 0 {
		return nil, errdef.NotFound.Errorf("the archive has no image for the platform %s", l.platform)
	}
	return out, nil
}

// A loading is what has been seen of an archive. Names are clean paths.
type loading struct {
	ctx      context.Context
	s        *store.Store
	progress func(Progress)
	platform oci.Platform // wanted; empty for the host's

	docs   map[string][]byte     // JSON files
	layers map[string]oci.DiffID // tars that have been read
	links  map[string]string     // old archives have links to layers they repeat
	size   int                   // of docs

	unplaced map[oci.DiffID]*store.Unpacked // layers that the archive has told nothing of yet

	deltas  map[oci.DiffID]loadedDelta // by the layer that they make
	applier delta.Applier
	loose   *store.Loose // their contents; nil without deltas
}

// An image is what an archive says of one.
type image struct {
	config string   // the name of its configuration
	layers []string // the names of its layers, bottom first
	tags   []string
	delta  bool // layers are deltas, of those that its base has not got
}

func (l *loading) read(r io.Reader) error {
	plain, err := Decompress(r)
	if err != nil {
		return err
	}
	defer plain.Close()
	tr := tar.NewReader(plain)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // names only name here
			return errdef.Invalid.Errorf("archive: %w", err)
		}
		if err := l.entry(h, tr); err != nil {
			return fmt.Errorf("archive entry %s: %w", h.Name, err)
		}
	}
}

func (l *loading) entry(h *tar.Header, r io.Reader) error {
	name := path.Clean(h.Name)
	switch h.Typeflag {
	case tar.TypeSymlink:
		l.links[name] = path.Join(path.Dir(name), h.Linkname)
	case tar.TypeLink:
		l.links[name] = path.Clean(h.Linkname)
	case tar.TypeReg:
		return l.file(name, h.Size, r)
	}
	return nil
}

// file takes what looks like a layer as one, and what looks like JSON as that.
// Nothing else matters.
func (l *loading) file(name string, size int64, r io.Reader) error {
	if diff, ok := named(name); ok {
		if _, err := l.s.Find(diff); err == nil {
			l.layers[name] = diff
			return nil
		}
	}
	counted := &counter{r: r, total: size, id: shortName(name), progress: l.progress}
	plain, err := Decompress(counted)
	if err != nil {
		return err
	}
	defer plain.Close()
	b := bufio.NewReaderSize(plain, 4096)
	head, err := b.Peek(512)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch {
	case delta.Is(head):
		return l.delta(b)
	case IsTar(head):
		return l.layer(name, b)
	case len(head) > 0 && strings.IndexByte("{[ \t\r\n", head[0]) >= 0:
		return l.document(name, b)
	}
	return nil
}

// layer unpacks a layer, and places it if the archive has told where.
func (l *loading) layer(name string, r io.Reader) error {
	u, err := l.s.Unpack(l.ctx, r)
	if err != nil {
		return err
	}
	l.layers[name] = u.DiffID
	if parent, ok := l.parentOf(name); ok {
		defer u.Close()
		_, err := u.Place(l.ctx, parent)
		return err
	}
	if twin := l.unplaced[u.DiffID]; twin != nil {
		twin.Close()
	}
	l.unplaced[u.DiffID] = u
	return nil
}

func (l *loading) closeUnplaced() {
	for _, u := range l.unplaced {
		u.Close()
	}
}

// named is the diff ID in the name of an uncompressed layer: of a blob or, as
// podman has it, of a file.
func named(name string) (oci.DiffID, bool) {
	hex, ok := strings.CutPrefix(name, "blobs/sha256/")
	if !ok {
		hex, ok = strings.CutSuffix(name, ".tar")
	}
	return oci.DiffID(oci.Prefix + hex), ok && oci.IsHex(hex)
}

func shortName(name string) string {
	id := path.Base(name)
	if id == "layer.tar" {
		id = path.Base(path.Dir(name))
	}
	return id[:min(12, len(id))]
}

func (l *loading) document(name string, r io.Reader) error {
	b, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err != nil {
		return err
	}
	if l.size += len(b); len(b) > maxDocument || l.size > maxDocuments {
		return errdef.Invalid.Errorf("JSON of more than %d bytes, or %d in all", maxDocument, maxDocuments)
	}
	if want, ok := named(name); ok && oci.FromBytes(b) != oci.Digest(want) {
		return errdef.Invalid.Errorf("its bytes have the digest %s: the archive is damaged", oci.FromBytes(b))
	}
	l.docs[name] = b
	return nil
}

// parentOf is what a layer lies upon, if the archive has told already and that
// is in the store.
func (l *loading) parentOf(name string) (oci.ChainID, bool) {
	images, err := l.plan()
	if err != nil {
		return "", false
	}
	for _, img := range images {
		_, diffs, err := l.config(img)
		if err != nil || len(diffs) != len(img.layers) || img.delta {
			continue
		}
		for i, layer := range img.layers {
			if layer != name {
				continue
			}
			parent := oci.ChainOf(diffs[:i])
			if _, err := l.s.Layer(parent); err == nil || parent == "" {
				return parent, true
			}
		}
	}
	return "", false
}

// plan reads which images there are.
func (l *loading) plan() ([]image, error) {
	if b, ok := l.docs["manifest.json"]; ok {
		return dockerImages(b)
	}
	if b, ok := l.docs["index.json"]; ok {
		return l.layoutImages(b)
	}
	return nil, errdef.Invalid.Errorf("the archive has neither manifest.json nor index.json: it is not an image archive; a root file system is for import")
}

// dockerImages reads manifest.json.
func dockerImages(b []byte) ([]image, error) {
	var items []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(b, &items); err != nil {
		return nil, errdef.Invalid.Errorf("manifest.json: %w", err)
	}
	var images []image
	for _, it := range items {
		img := image{config: path.Clean(it.Config), tags: it.RepoTags}
		for _, layer := range it.Layers {
			img.layers = append(img.layers, path.Clean(layer))
		}
		images = append(images, img)
	}
	return images, nil
}

// layoutImages reads the index.json of an OCI layout.
func (l *loading) layoutImages(b []byte) ([]image, error) {
	var index v1.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return nil, errdef.Invalid.Errorf("index.json: %w", err)
	}
	var images []image
	for _, d := range index.Manifests {
		img, err := l.described(d, 0)
		if err != nil {
			return nil, err
		}
		if img != nil {
			img.tags = names(d)
			images = append(images, *img)
		}
	}
	return images, nil
}

// described finds the image behind a descriptor: a manifest, or an index of
// which our platform's is taken. Nil stands for what is not an image.
func (l *loading) described(d v1.Descriptor, depth int) (*image, error) {
	if depth > 4 {
		return nil, errdef.Invalid.Errorf("index.json: indexes in indexes in indexes")
	}
	b, ok := l.docs[blob(d)]
	if !ok {
		return nil, errdef.Invalid.Errorf("%s is missing", blob(d))
	}
	var m struct {
		v1.Index
		Config v1.Descriptor
		Layers []v1.Descriptor
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, errdef.Invalid.Errorf("%s: %w", blob(d), err)
	}
	if len(m.Manifests) > 0 {
		inner, ok := l.ours(m.Manifests)
		if !ok {
			return nil, nil
		}
		return l.described(inner, depth+1)
	}
	if m.Config.Digest == "" {
		return nil, nil
	}
	img := &image{config: blob(m.Config), delta: m.ArtifactType == delta.ArtifactType}
	for _, layer := range m.Layers {
		img.layers = append(img.layers, blob(layer))
	}
	return img, nil
}

func blob(d v1.Descriptor) string {
	return "blobs/" + strings.Replace(string(d.Digest), ":", "/", 1)
}

// ours picks the manifest for the platform that is wanted or, if none was asked
// for, the first when there is none for this host.
func (l *loading) ours(all []v1.Descriptor) (v1.Descriptor, bool) {
	want := l.platform
	if want == (oci.Platform{}) {
		want = oci.Host()
	}
	for _, p := range want.Runs() {
		for _, d := range all {
			if d.Platform != nil && (oci.Platform{OS: d.Platform.OS, Architecture: d.Platform.Architecture, Variant: d.Platform.Variant}).Canonical() == p {
				return d, true
			}
		}
	}
	if len(all) == 0 || l.platform != (oci.Platform{}) {
		return v1.Descriptor{}, false
	}
	return all[0], true
}

// names are those that containerd or Docker give in annotations. A bare tag,
// which some tools write, names nothing.
func names(d v1.Descriptor) []string {
	if n := d.Annotations["io.containerd.image.name"]; n != "" {
		return []string{n}
	}
	if n := d.Annotations[v1.AnnotationRefName]; strings.ContainsAny(n, "/:") {
		return []string{n}
	}
	return nil
}

// config reads an image's configuration and the diff IDs in it.
func (l *loading) config(img image) ([]byte, []oci.DiffID, error) {
	b, ok := l.docs[img.config]
	if !ok {
		return nil, nil, errdef.Invalid.Errorf("configuration %s is missing", img.config)
	}
	var c v1.Image
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, nil, errdef.Invalid.Errorf("configuration %s: %w", img.config, err)
	}
	var diffs []oci.DiffID
	for _, d := range c.RootFS.DiffIDs {
		diffs = append(diffs, oci.DiffID(d))
	}
	return b, diffs, nil
}

// finish stacks an image's layers and records it.
func (l *loading) finish(img image) error {
	config, diffs, err := l.config(img)
	if err != nil {
		return err
	}
	if img.delta {
		err = l.stackDelta(diffs)
	} else {
		err = l.stack(img, diffs)
	}
	if err != nil {
		return err
	}
	id, err := l.s.PutImage(l.ctx, config, "")
	if err != nil {
		return err
	}
	if err := l.keepManifests(id, diffs); err != nil {
		return err
	}
	return l.name(id, img.tags)
}

func (l *loading) stack(img image, diffs []oci.DiffID) error {
	if len(diffs) != len(img.layers) {
		return errdef.Invalid.Errorf("configuration %s has %d layers, the manifest %d", img.config, len(diffs), len(img.layers))
	}
	var chain oci.ChainID
	for i, name := range img.layers {
		if err := l.holds(name, diffs[i]); err != nil {
			return err
		}
		layer, err := l.place(chain, diffs[i])
		if err != nil {
			return fmt.Errorf("layer %s: %w", name, err)
		}
		chain = layer.ChainID
	}
	return nil
}

func (l *loading) place(parent oci.ChainID, diff oci.DiffID) (store.Layer, error) {
	if u := l.unplaced[diff]; u != nil {
		return u.Place(l.ctx, parent)
	}
	return l.s.Restack(l.ctx, parent, diff)
}

// keepManifests keeps those of the image that have its layers as they are, not
// compressed: a save can write them again.
func (l *loading) keepManifests(id oci.ImageID, diffs []oci.DiffID) error {
	for _, b := range l.docs {
		var m v1.Manifest
		if json.Unmarshal(b, &m) != nil || !describes(m, id, diffs) {
			continue
		}
		if err := l.s.PutManifest(id, store.Manifest{Digest: oci.FromBytes(b), MediaType: m.MediaType, Raw: b}); err != nil {
			return err
		}
	}
	return nil
}

// describes reports whether a manifest is an image's with its layers not
// compressed.
func describes(m v1.Manifest, id oci.ImageID, diffs []oci.DiffID) bool {
	return string(m.Config.Digest) == string(id) && slices.EqualFunc(m.Layers, diffs, func(l v1.Descriptor, d oci.DiffID) bool {
		return string(l.Digest) == string(d)
	})
}

// holds checks that a layer of the archive is what the configuration says. An
// archive may leave out layers that the store has.
func (l *loading) holds(name string, want oci.DiffID) error {
	for range 2 {
		if to, ok := l.links[name]; ok {
			name = to
		}
	}
	got, ok := l.layers[name]
	if ok && got != want {
		return errdef.Invalid.Errorf("layer %s has diff ID %s, the configuration says %s", name, got, want)
	}
	if ok {
		return nil
	}
	if _, err := l.s.Find(want); err != nil {
		return errdef.Invalid.Errorf("layer %s is missing in the archive", name)
	}
	return nil
}

func (l *loading) name(id oci.ImageID, tags []string) error {
	if len(tags) == 0 {
		l.progress(Progress{Loaded: string(id), ImageID: id})
	}
	for _, tag := range tags {
		ref, err := oci.ParseReference(tag)
		if err != nil {
			return errdef.Invalid.Errorf("name %q: %w", tag, err)
		}
		if err := l.s.Tag(id, ref); err != nil {
			return err
		}
		l.progress(Progress{Loaded: ref.Familiar(), ImageID: id})
	}
	return nil
}

// A counter reports how much of a layer has been read, now and then.
type counter struct {
	r        io.Reader
	n, told  int64
	total    int64
	id       string
	progress func(Progress)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.total >= 64<<10 && (c.n-c.told >= 512<<10 || c.n == c.total && c.told < c.n) {
		c.told = c.n
		c.progress(Progress{ID: c.id, Current: c.n, Total: c.total})
	}
	return n, err
}
