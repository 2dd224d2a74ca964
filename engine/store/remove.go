package store

import (
	"errors"
	"fmt"
	"slices"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// RemoveOptions are those of docker rmi.
type RemoveOptions struct {
	Force       bool
	KeepParents bool // untagged ones, too
}

// A Removed says what Remove did, as DELETE /images reports it: one of the two
// is set.
type Removed struct {
	Untagged string
	Deleted  string
}

// Remove takes a name or ID with Docker's rules.
//
// A name is untagged, and the image goes with its last name. An ID takes its
// names along if there is one tag at most and all are in one repository; else
// it needs force. An image that a stopped container uses needs force too. One
// that a running container uses, or that another image was built on, stays
// even then. With an image go the untagged parents that only it had kept, unless
// KeepParents is set.
// Layers and files go with the next GC.
//
// inUse tells of a container that uses an image, a running one if there is
// one, "" if none. It must not call the store.
func (s *Store) Remove(name string, o RemoveOptions, inUse func(oci.ImageID) (container string, running bool)) ([]Removed, error) {
	var r removal
	err := s.update(func(t tables) error {
		r = removal{tables: t, keepParents: o.KeepParents, inUse: inUse}
		return r.remove(name, o.Force)
	})
	if err != nil {
		return nil, err
	}
	return r.done, nil
}

// A removal is one call of Remove in its transaction.
type removal struct {
	tables
	keepParents bool
	inUse       func(oci.ImageID) (container string, running bool)
	done        []Removed
}

func (r *removal) remove(name string, force bool) error {
	id, ref, err := r.resolve(name)
	if err != nil {
		return err
	}
	names := r.namesOf(id)
	if ref == (oci.Reference{}) {
		return r.removeByID(id, names, force)
	}
	return r.removeByName(id, ref, name, names, force)
}

func (r *removal) removeByName(id oci.ImageID, ref oci.Reference, name string, names []oci.Reference, force bool) error {
	container, _ := r.inUse(id)
	if container != "" && !force && single(names) {
		return errdef.Conflict.Errorf("conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s",
			name, container, id.Short())
	}
	if err := r.untag(ref); err != nil {
		return err
	}
	names = r.namesOf(id)
	if ref.Digest == "" && !hasTag(names, ref.Repository()) {
		if err := r.untagAll(in(names, ref.Repository())); err != nil {
			return err
		}
		names = r.namesOf(id)
	}
	if len(names) > 0 {
		return nil
	}
	c := r.conflict(id, names, force)
	if c != nil && c.used {
		return nil // untagging was all that could be done
	}
	return r.deleteUnless(id, c)
}

func (r *removal) removeByID(id oci.ImageID, names []oci.Reference, force bool) error {
	if single(names) {
		// The one name is no reason to keep the image.
		return r.deleteUnless(id, r.conflict(id, nil, force))
	}
	return r.deleteUnless(id, r.conflict(id, names, force))
}

// A conflict is a reason not to delete an image.
type conflict struct {
	hard bool // force does not help
	used bool // by a container
	why  string
}

// conflict finds the first reason, if any, that force does not overcome.
func (r *removal) conflict(id oci.ImageID, names []oci.Reference, force bool) *conflict {
	if r.hasChildren(id) {
		return &conflict{hard: true, why: "image has dependent child images"}
	}
	container, running := r.inUse(id)
	switch {
	case running:
		return &conflict{hard: true, used: true, why: "image is being used by running container " + container}
	case force:
		return nil
	case len(names) > 0:
		return &conflict{why: "image is referenced in multiple repositories"}
	case container != "":
		return &conflict{used: true, why: "image is being used by stopped container " + container}
	}
	return nil
}

func (r *removal) deleteUnless(id oci.ImageID, c *conflict) error {
	if c == nil {
		return r.delete(id)
	}
	force := "must be forced"
	if c.hard {
		force = "cannot be forced"
	}
	return errdef.Conflict.Errorf("conflict: unable to delete %s (%s) - %s", id.Short(), force, c.why)
}

// delete removes an image, what still names it, and then each parent that
// nothing else keeps.
func (r *removal) delete(id oci.ImageID) error {
	for {
		if err := r.untagAll(r.namesOf(id)); err != nil {
			return err
		}
		rec, err := r.image(id)
		if err != nil {
			return err
		}
		if err := errors.Join(r.images.Delete([]byte(id)), r.configs.Delete([]byte(id)), r.forgetManifests(string(id))); err != nil {
			return fmt.Errorf("image %s: %w", id, err)
		}
		r.done = append(r.done, Removed{Deleted: string(id)})
		id = rec.Parent
		if id == "" || r.keepParents || r.images.Get([]byte(id)) == nil || r.conflict(id, r.namesOf(id), false) != nil {
			return nil
		}
	}
}

func (r *removal) untagAll(refs []oci.Reference) error {
	for _, ref := range refs {
		if err := r.untag(ref); err != nil {
			return err
		}
	}
	return nil
}

func (r *removal) untag(ref oci.Reference) error {
	if ref.Digest != "" {
		ref.Tag = ""
	}
	r.done = append(r.done, Removed{Untagged: ref.Familiar()})
	return r.names.Delete([]byte(nameKey(ref)))
}

func (r *removal) hasChildren(id oci.ImageID) bool {
	for key := range keys(r.images) {
		if rec, err := r.image(oci.ImageID(key)); err == nil && rec.Parent == id {
			return true
		}
	}
	return false
}

// single reports whether an image has names, in one repository, with one tag
// at most.
func single(names []oci.Reference) bool {
	tags := 0
	for _, n := range names {
		if n.Repository() != names[0].Repository() {
			return false
		}
		if n.Digest == "" {
			tags++
		}
	}
	return len(names) > 0 && tags <= 1
}

func in(names []oci.Reference, repository string) []oci.Reference {
	return slices.DeleteFunc(slices.Clone(names), func(n oci.Reference) bool { return n.Repository() != repository })
}

func hasTag(names []oci.Reference, repository string) bool {
	return slices.ContainsFunc(names, func(n oci.Reference) bool { return n.Repository() == repository && n.Digest == "" })
}
