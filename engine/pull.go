package engine

import (
	"context"
	"fmt"
	"io"
	"path"
	"runtime/debug"
	"strings"

	"github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/engine/registry"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/thread"
	"github.com/minke-os/minke/oci"
)

// PullOptions say how to pull an image.
type PullOptions struct {
	Platform    oci.Platform // the host's if empty
	Credentials registry.Credentials
	NoDeltas    bool                    // fetch layers whole
	Background  bool                    // give way to everybody else
	Progress    func(registry.Progress) // called from several goroutines
}

// ImagePull pulls an image by tag or digest, or, if neither is given, all tags
// of a repository.
func (e *Engine) ImagePull(ctx context.Context, name, tag string, o PullOptions) error {
	if o.Background {
		return background(func() error { return e.imagePull(ctx, name, tag, o) })
	}
	return e.imagePull(ctx, name, tag, o)
}

// background runs f on a thread of its own that yields processor and disk to
// others. What f has other goroutines do is held up with it. That the kernel
// refuses, as within some containers, does not matter.
func background(f func() error) error {
	return thread.Run(func() error {
		const nice = 10
		unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), nice)
		// The last of eight: a thread that writes only when nobody else does
		// might never be done.
		const process, bestEffort, last, classShift = 1, 2, 7, 13 // linux/ioprio.h
		unix.Syscall(unix.SYS_IOPRIO_SET, process, 0, bestEffort<<classShift|last)
		return f()
	})
}

func (e *Engine) imagePull(ctx context.Context, name, tag string, o PullOptions) error {
	refs, err := e.pullRefs(ctx, name, tag, o)
	if err != nil {
		return err
	}
	for _, ref := range refs {
		if _, err := e.pull(ctx, ref, o); err != nil {
			return err
		}
	}
	return nil
}

func (e *Engine) pullRefs(ctx context.Context, name, tag string, o PullOptions) ([]oci.Reference, error) {
	ref, all, err := joinReference(name, tag)
	if err != nil || !all {
		return []oci.Reference{ref}, err
	}
	tags, err := e.registry.Load().Tags(ctx, ref, o.Credentials)
	if err != nil {
		return nil, err
	}
	refs := make([]oci.Reference, len(tags))
	for i, t := range tags {
		refs[i] = ref
		refs[i].Tag = t
	}
	return refs, nil
}

// joinReference reads a name and a tag, which may be a digest, as the API has
// them. All is set if neither has a tag or digest.
func joinReference(name, tag string) (ref oci.Reference, all bool, err error) {
	switch {
	case strings.HasPrefix(tag, oci.Prefix):
		name += "@" + tag
	case tag != "":
		name += ":" + tag
	default:
		all = !strings.ContainsAny(path.Base(name), ":@")
	}
	if ref, err = oci.ParseReference(name); err != nil {
		return ref, false, errdef.Invalid.Wrap(err)
	}
	return ref, all, nil
}

func (e *Engine) pull(ctx context.Context, ref oci.Reference, o PullOptions) (oci.ImageID, error) {
	id, err := e.registry.Load().Pull(ctx, ref, registry.PullOptions{
		Platform: o.Platform, Host: hostPlatform(), Credentials: o.Credentials, NoDeltas: o.NoDeltas, Background: o.Background, Progress: o.Progress,
	})
	if err == nil {
		id, err = e.undelta(ctx, id, o.Progress)
	}
	// The containers need the memory that this took, and the collector would
	// keep it for minutes.
	debug.FreeOSMemory()
	if err != nil {
		return "", err
	}
	e.publishImage(events.ActionPull, ref.Familiar(), ref.FamiliarRepository())
	return id, nil
}

// pullBase pulls what a FROM names, telling what a person wants to know on out.
func (e *Engine) pullBase(auths RegistryAuths) func(context.Context, oci.Reference, oci.Platform, io.Writer) (oci.ImageID, error) {
	return func(ctx context.Context, ref oci.Reference, p oci.Platform, out io.Writer) (oci.ImageID, error) {
		if p == oci.Host() {
			p = oci.Platform{} // nobody asked for it
		}
		return e.pull(ctx, ref, PullOptions{Platform: p, Credentials: auths[ref.Domain], Progress: func(l registry.Progress) {
			switch {
			case l.Total > 0: // bytes are for progress bars
			case l.ID != "":
				fmt.Fprintf(out, "%s: %s\n", l.ID, l.Status)
			default:
				fmt.Fprintln(out, l.Status)
			}
		}})
	}
}

// hostPlatform is oci.Host with the variant of this very processor, without
// which a Raspberry Pi Zero would get programs for newer ones.
func hostPlatform() oci.Platform {
	p := oci.Host()
	var uts unix.Utsname
	if p.Architecture != "arm" || unix.Uname(&uts) != nil {
		return p
	}
	switch machine := unix.ByteSliceToString(uts.Machine[:]); {
	case strings.HasPrefix(machine, "armv5"):
		p.Variant = "v5"
	case strings.HasPrefix(machine, "armv6"):
		p.Variant = "v6"
	default: // armv7l, or a 64-bit kernel
		p.Variant = "v7"
	}
	return p
}
