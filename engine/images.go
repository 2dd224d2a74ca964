package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	imagetypes "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/storage"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/order"
	"github.com/minke-os/minke/internal/overlay"
	"github.com/minke-os/minke/oci"
)

// topLayer is the chain ID of an image's topmost layer, "" for an empty one.
func topLayer(img store.Image) oci.ChainID { return oci.ChainOf(diffIDs(img)) }

func diffIDs(img store.Image) []oci.DiffID {
	out := make([]oci.DiffID, len(img.Config.RootFS.DiffIDs))
	for i, d := range img.Config.RootFS.DiffIDs {
		out[i] = oci.DiffID(d)
	}
	return out
}

func (e *Engine) image(name string) (store.Image, error) {
	id, _, err := e.images.Resolve(name)
	if err != nil {
		return store.Image{}, err
	}
	return e.images.Image(id)
}

// matches refuses an image that is not for the platform, if one is given.
func matches(img store.Image, name string, want oci.Platform) error {
	is := oci.Platform{OS: img.Config.OS, Architecture: img.Config.Architecture, Variant: img.Config.Variant}
	if want == (oci.Platform{}) || slices.Contains(want.Runs(), is.Canonical()) {
		return nil
	}
	return errdef.NotFound.Errorf("image with reference %s was found but does not match the specified platform: wanted %s, actual: %s", name, want, is)
}

func familiar(refs []oci.Reference) []string {
	out := make([]string, len(refs))
	for i, r := range refs {
		out[i] = r.Familiar()
	}
	slices.Sort(out)
	return out
}

// An ImageDescription is what docker image inspect shows.
type ImageDescription struct {
	imagetypes.InspectResponse
	Parent oci.ImageID `json:"-"` // if built or committed here
}

// ImageInspect finds an image by name, ID or unique ID prefix, and if a
// platform is given only one for that.
func (e *Engine) ImageInspect(name string, p oci.Platform) (ImageDescription, error) {
	img, err := e.image(name)
	if err == nil {
		err = matches(img, name, p)
	}
	if err != nil {
		return ImageDescription{}, err
	}
	out := ImageDescription{Parent: img.Parent}
	out.InspectResponse = imagetypes.InspectResponse{
		ID: string(img.ID), RepoTags: familiar(img.Tags), RepoDigests: familiar(img.Digests), Author: img.Config.Author,
		Config: &img.Config.Config, Architecture: img.Config.Architecture, Variant: img.Config.Variant, Os: img.Config.OS, OsVersion: img.Config.OSVersion,
		Size: img.Size, GraphDriver: &storage.DriverData{Name: storageDriver, Data: map[string]string{}},
		RootFS: imagetypes.RootFS{Type: "layers"}, Metadata: imagetypes.Metadata{LastTagTime: img.Tagged},
	}
	if img.Config.Created != nil {
		out.Created = img.Config.Created.Format(time.RFC3339Nano)
	}
	if n := len(img.Config.History); n > 0 {
		out.Comment = img.Config.History[n-1].Comment
	}
	for _, d := range diffIDs(img) {
		out.RootFS.Layers = append(out.RootFS.Layers, string(d))
	}
	return out, nil
}

// ImageHistory lists the steps that made an image, youngest first.
func (e *Engine) ImageHistory(name string, p oci.Platform) ([]imagetypes.HistoryResponseItem, error) {
	img, err := e.image(name)
	if err == nil {
		err = matches(img, name, p)
	}
	if err != nil {
		return nil, err
	}
	var out []imagetypes.HistoryResponseItem
	diffs := diffIDs(img)
	var chain oci.ChainID
	for _, h := range img.Config.History {
		item := imagetypes.HistoryResponseItem{ID: "<missing>", CreatedBy: h.CreatedBy, Comment: h.Comment, Tags: []string{}}
		if h.Created != nil {
			item.Created = h.Created.Unix()
		}
		if !h.EmptyLayer && len(diffs) > 0 {
			chain, diffs = oci.Chain(chain, diffs[0]), diffs[1:]
			l, err := e.images.Layer(chain)
			if err != nil {
				return nil, err
			}
			item.Size = l.Size
		}
		out = append(out, item)
	}
	slices.Reverse(out)
	// The newest steps were made by images that may still be here.
	for i := 0; i < len(out) && img.ID != ""; i++ {
		out[i].ID = string(img.ID)
		if tags := familiar(img.Tags); len(tags) > 0 {
			out[i].Tags = tags
		}
		if img.Parent == "" {
			break
		}
		if img, err = e.images.Image(img.Parent); err != nil {
			break
		}
	}
	return out, nil
}

// ImageListOptions are those of docker images.
type ImageListOptions struct {
	All        bool // intermediate images, too
	SharedSize bool
	Filters    Filters
}

// ImageList lists images, youngest first.
func (e *Engine) ImageList(o ImageListOptions) ([]imagetypes.Summary, error) {
	f := o.Filters
	if err := f.check("before", "dangling", "label", "reference", "since", "until"); err != nil {
		return nil, err
	}
	dangling, asked, err := f.is("dangling")
	if err != nil {
		return nil, err
	}
	until, err := f.until()
	if err != nil {
		return nil, err
	}
	var before, since time.Time
	for _, name := range f["before"] {
		img, err := e.image(name)
		if err != nil {
			return nil, err
		}
		before = created(img)
	}
	for _, name := range f["since"] {
		img, err := e.image(name)
		if err != nil {
			return nil, err
		}
		since = created(img)
	}
	all, err := e.images.Images()
	if err != nil {
		return nil, err
	}
	isParent := map[oci.ImageID]bool{}
	for _, img := range all {
		isParent[img.Parent] = true
	}
	users := map[oci.ImageID]int64{}
	for _, c := range e.all() {
		users[c.snapshot().Image]++
	}
	out := []imagetypes.Summary{}
	for _, img := range all {
		bare := len(img.Tags)+len(img.Digests) == 0
		at := created(img)
		switch {
		case bare && isParent[img.ID] && !o.All: // a step of a build
		case asked && dangling != (bare && !isParent[img.ID]):
		case !f.Labels("label", img.Config.Config.Labels), !matchReference(f["reference"], &img):
		case !before.IsZero() && !at.Before(before), !since.IsZero() && !at.After(since), !until.IsZero() && at.After(until):
		default:
			out = append(out, summarize(img, users[img.ID]))
		}
	}
	if o.SharedSize {
		if err := e.setSharedSizes(out, all); err != nil {
			return nil, err
		}
	}
	order.By(out, func(a, b imagetypes.Summary) int {
		return cmp.Or(cmp.Compare(b.Created, a.Created), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

// setSharedSizes fills in how much of each image others of the list have, too.
func (e *Engine) setSharedSizes(list []imagetypes.Summary, all []store.Image) error {
	tops := map[oci.ImageID]oci.ChainID{}
	for _, img := range all {
		if slices.ContainsFunc(list, func(s imagetypes.Summary) bool { return s.ID == string(img.ID) }) { // not a step of a build
			tops[img.ID] = topLayer(img)
		}
	}
	shared, err := e.images.Shared(tops)
	if err != nil {
		return err
	}
	for i := range list {
		list[i].SharedSize = shared[oci.ImageID(list[i].ID)]
	}
	return nil
}

func created(img store.Image) time.Time {
	if img.Config.Created == nil {
		return time.Time{}
	}
	return *img.Config.Created
}

func summarize(img store.Image, containers int64) imagetypes.Summary {
	s := imagetypes.Summary{
		ID: string(img.ID), ParentID: string(img.Parent), RepoTags: familiar(img.Tags), RepoDigests: familiar(img.Digests),
		Labels: img.Config.Config.Labels, Size: img.Size, SharedSize: -1, Containers: containers,
	}
	if img.Config.Created != nil {
		s.Created = img.Config.Created.Unix()
	}
	return s
}

// matchReference applies docker's --filter reference=pattern to names, leaves
// the image those that fit, and reports whether there are any.
func matchReference(patterns []string, img *store.Image) bool {
	if len(patterns) == 0 {
		return true
	}
	other := func(ref oci.Reference) bool {
		return !slices.ContainsFunc(patterns, func(p string) bool {
			return slices.ContainsFunc([]string{ref.Familiar(), ref.FamiliarRepository(), ref.String()}, func(name string) bool {
				ok, _ := filepath.Match(p, name)
				return ok
			})
		})
	}
	img.Tags = slices.DeleteFunc(img.Tags, other)
	img.Digests = slices.DeleteFunc(img.Digests, other)
	return len(img.Tags)+len(img.Digests) > 0
}

// ImageTag gives an image another name.
func (e *Engine) ImageTag(name, repo, tag string) error {
	img, err := e.image(name)
	if err != nil {
		return err
	}
	if tag != "" {
		repo += ":" + tag
	}
	ref, err := oci.ParseReference(repo)
	if err != nil {
		return errdef.Invalid.Wrap(err)
	}
	if err := e.images.Tag(img.ID, ref); err != nil {
		return err
	}
	e.publishImage(events.ActionTag, string(img.ID), ref.Familiar())
	return nil
}

// ImageRemove takes away a name, and the image with its last one.
func (e *Engine) ImageRemove(ctx context.Context, name string, o store.RemoveOptions) ([]imagetypes.DeleteResponse, error) {
	id, _, err := e.images.Resolve(name)
	if err != nil {
		return nil, err
	}
	removed, err := e.images.Remove(name, o, e.imageUser)
	if err != nil {
		return nil, err
	}
	out := []imagetypes.DeleteResponse{}
	deleted := false
	for _, r := range removed {
		out = append(out, imagetypes.DeleteResponse{Untagged: r.Untagged, Deleted: r.Deleted})
		if r.Untagged != "" {
			e.publishImage(events.ActionUnTag, string(id), r.Untagged)
		}
		if r.Deleted != "" {
			deleted = true
			e.publishImage(events.ActionDelete, r.Deleted, r.Deleted)
		}
	}
	if deleted {
		_, err = e.images.GC(ctx)
	}
	return out, err
}

// imageUser names a container that uses an image, a running one first.
func (e *Engine) imageUser(id oci.ImageID) (name string, running bool) {
	for _, c := range e.all() {
		r := c.snapshot()
		if r.Image == id && (name == "" || r.Running) {
			name, running = r.ID[:12], r.Running
		}
		if running {
			return name, true
		}
	}
	return name, false
}

// ImagePrune removes images without a name, and with dangling=false those that
// no container uses, too.
func (e *Engine) ImagePrune(ctx context.Context, f Filters) (deleted []imagetypes.DeleteResponse, reclaimed int64, err error) {
	wanted, err := e.pruneFilter(f)
	if err != nil {
		return nil, 0, err
	}
	before, err := e.images.Usage()
	if err != nil {
		return nil, 0, err
	}
	deleted = []imagetypes.DeleteResponse{}
	// An image goes after those that were built on it, so a pass may make
	// room for another.
	for progress := true; progress; {
		progress = false
		all, err := e.images.Images()
		if err != nil {
			return deleted, 0, err
		}
		for _, img := range all {
			if !wanted(img) {
				continue
			}
			removed, err := e.ImageRemove(ctx, string(img.ID), store.RemoveOptions{Force: true})
			if err != nil && !errdef.Is(err, errdef.NotFound) && !errdef.Is(err, errdef.Conflict) {
				return deleted, 0, err
			}
			deleted = append(deleted, removed...)
			progress = progress || len(removed) > 0
		}
	}
	if _, err := e.images.GC(ctx); err != nil {
		return deleted, 0, err
	}
	after, err := e.images.Usage()
	reclaimed = max(before-after, 0)
	e.publishPrune(events.ImageEventType, reclaimed)
	return deleted, reclaimed, err
}

// pruneFilter tells which images a prune is about, by name, use and labels.
func (e *Engine) pruneFilter(f Filters) (func(store.Image) bool, error) {
	if err := f.check("dangling", "label", "label!", "until"); err != nil {
		return nil, err
	}
	dangling, asked, err := f.is("dangling")
	if err != nil {
		return nil, err
	}
	until, err := f.until()
	if err != nil {
		return nil, err
	}
	nameless := !asked || dangling // only
	return func(img store.Image) bool {
		if user, _ := e.imageUser(img.ID); user != "" || nameless && len(img.Tags) > 0 {
			return false
		}
		labels := img.Config.Config.Labels
		return f.Labels("label", labels) && f.unlabelled("label!", labels) && (until.IsZero() || created(img).Before(until))
	}, nil
}

// CommitOptions are those of docker commit.
type CommitOptions struct {
	Repo, Tag       string
	Author, Comment string
	Config          *container.Config // in place of the container's, if not nil
	Changes         []string          // Dockerfile instructions to apply to it
	Pause           bool
}

// ContainerCommit makes an image of a container's changes.
func (e *Engine) ContainerCommit(ctx context.Context, name string, o CommitOptions) (oci.ImageID, error) {
	c, err := e.find(name)
	if err != nil {
		return "", err
	}
	r := c.snapshot()
	if o.Pause && r.runs() && !r.Paused {
		if err := e.rt.Pause(ctx, r.ID); err != nil {
			return "", err
		}
		defer e.rt.Resume(context.WithoutCancel(ctx), r.ID)
	}
	layer, err := e.commitLayer(ctx, &r)
	if err != nil {
		return "", err
	}
	config := dockerspec.DockerOCIImage{}
	config.Created, config.Author = new(time.Now().UTC()), o.Author
	config.OS, config.Architecture, config.Variant = "linux", oci.Host().Architecture, oci.Host().Variant
	if base, err := e.images.Image(r.Image); err == nil {
		config.Platform, config.RootFS, config.History = base.Config.Platform, base.Config.RootFS, base.Config.History
	}
	cfg := r.Config
	if o.Config != nil {
		cfg = o.Config
	}
	if cfg, err = changed(cfg, o.Changes); err != nil {
		return "", err
	}
	config.Config = imageConfig(cfg)
	config.RootFS.Type = "layers"
	if !layer.Empty() {
		config.RootFS.DiffIDs = append(slices.Clone(config.RootFS.DiffIDs), digestOf(layer.DiffID))
	}
	config.History = append(slices.Clone(config.History), ocispec.History{
		Created: config.Created, CreatedBy: strings.Join(append([]string{r.Path}, r.Args...), " "), Author: o.Author, Comment: o.Comment, EmptyLayer: layer.Empty(),
	})
	raw, err := json.Marshal(config)
	if err != nil {
		return "", err
	}
	id, err := e.images.PutImage(ctx, raw, r.Image)
	if err != nil {
		return "", err
	}
	if o.Repo != "" {
		if err := e.ImageTag(string(id), o.Repo, o.Tag); err != nil {
			return "", err
		}
	}
	e.publish(events.ActionCommit, &r, map[string]string{"comment": o.Comment, "imageID": string(id), "imageRef": o.Repo})
	return id, nil
}

// commitLayer makes a layer of what a container changed, leaving out the mount
// points of the engine's own files.
func (e *Engine) commitLayer(ctx context.Context, r *record) (store.Layer, error) {
	m, err := e.rootfs(r)
	if err != nil {
		return store.Layer{}, err
	}
	upper := filepath.Join(e.containerDir(r.ID), "upper")
	for target := range e.ownTargets(r) {
		// A running container needs them.
		for ; target != "/" && err == nil && !r.runs(); target = path.Dir(target) {
			err = removeMountPoint(upper, target, m)
		}
	}
	if err != nil {
		return store.Layer{}, fmt.Errorf("commit: %w", err)
	}
	return e.images.Commit(ctx, r.Layer, upper, m)
}

// removeMountPoint removes an empty file or directory that was made to mount on,
// or to hold such.
func removeMountPoint(upper, target string, m overlay.Mount) error {
	made := filepath.Join(upper, target)
	fi, err := os.Lstat(made)
	if err != nil || !(fi.Mode().IsRegular() && fi.Size() == 0) && !(fi.IsDir() && !inLayers(m, target)) {
		return nil
	}
	if err := os.Remove(made); err != nil && !errors.Is(err, syscall.ENOTEMPTY) {
		return err
	}
	return nil
}

// inLayers reports whether some layer below a container's own has a path.
func inLayers(m overlay.Mount, name string) bool {
	return slices.ContainsFunc(m.Lower, func(dir string) bool {
		_, err := os.Lstat(filepath.Join(dir, name))
		return err == nil
	})
}

// imageConfig is what an image keeps of a container's configuration.
func imageConfig(c *container.Config) dockerspec.DockerOCIImageConfig {
	out := dockerspec.DockerOCIImageConfig{}
	out.User, out.Env, out.Entrypoint, out.Cmd = c.User, c.Env, c.Entrypoint, c.Cmd
	out.Volumes, out.WorkingDir, out.Labels, out.StopSignal = c.Volumes, c.WorkingDir, c.Labels, c.StopSignal
	out.ArgsEscaped, out.Healthcheck, out.OnBuild, out.Shell = c.ArgsEscaped, c.Healthcheck, c.OnBuild, c.Shell
	if len(c.ExposedPorts) > 0 {
		out.ExposedPorts = map[string]struct{}{}
		for p := range c.ExposedPorts {
			out.ExposedPorts[p.String()] = struct{}{}
		}
	}
	return out
}

func digestOf(d oci.DiffID) digest.Digest { return digest.Digest(d) }
