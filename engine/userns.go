package engine

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	osuser "os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/engine/internal/spec"
	"github.com/minke-os/minke/internal/durable"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/overlay"
	"github.com/minke-os/minke/internal/userns"
)

// A remap is the user namespaces of this engine's containers: each has one of
// its own, all with this mapping. On disk there is none: layers and volumes are
// mounted so that user 0 of a container is user 0 of the file system.
type remap struct {
	ids userns.Mapping
	ns  *os.File // one to map mounts with
}

// Who may give IDs to containers.
const (
	subUIDFile = "/etc/subuid"
	subGIDFile = "/etc/subgid"
)

// defaultRemap is the owner of the IDs if the user has no wish, as in Docker.
const defaultRemap = "dockremap"

// openRemap finds the IDs and looks whether kernel and disk can do it.
func openRemap(text, dataRoot string) (*remap, error) {
	if text == "" {
		return nil, nil
	}
	if text == "default" {
		if err := ensureSubIDs(defaultRemap, subUIDFile, subGIDFile); err != nil {
			return nil, fmt.Errorf("userns-remap: %w", err)
		}
	}
	ids, err := ParseUserRemap(text, subUIDFile, subGIDFile)
	if err != nil {
		return nil, fmt.Errorf("userns-remap %s: %w", text, err)
	}
	ns, err := userns.New(ids)
	if err != nil {
		return nil, fmt.Errorf("userns-remap %s: this kernel must allow user namespaces (CONFIG_USER_NS, /proc/sys/user/max_user_namespaces): %w", text, err)
	}
	if err := probeRemap(ids, ns, dataRoot); err != nil {
		ns.Close()
		return nil, errdef.Unsupported.Errorf("userns-remap %s: images are shared by containers with and without user namespaces, which needs overlays of layers that map IDs: Linux 5.19, and ext4, xfs, btrfs or f2fs below %s: %w", text, dataRoot, err)
	}
	return &remap{ids, ns}, nil
}

// probeRemap mounts a small container's root and writes to it.
func probeRemap(ids userns.Mapping, ns *os.File, dataRoot string) error {
	dir, err := os.MkdirTemp(dataRoot, "probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	m := overlay.Mount{Lower: []string{filepath.Join(dir, "lower")}, Upper: filepath.Join(dir, "own", "upper"), Work: filepath.Join(dir, "own", "work")}
	for _, d := range []string{m.Lower[0], m.Upper, m.Work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	view, err := m.OpenMapped(ns, ids)
	if err != nil {
		return err
	}
	defer view.Close()
	return ids.AsRoot(func() error { return os.Mkdir(filepath.Join(overlay.Path(view), "x"), 0o755) })
}

// ParseUserRemap finds the subordinate IDs that text names, in dockerd's forms:
// "default", "user" and "user:group", by names or numbers. Errors are of kind
// errdef.Invalid.
func ParseUserRemap(text, subUID, subGID string) (m userns.Mapping, err error) {
	name, group, both := strings.Cut(text, ":")
	if text == "default" {
		name = defaultRemap
	}
	if !both {
		group = name
	}
	if name == "" || group == "" {
		return m, errdef.Invalid.Errorf("invalid user: want default, user or user:group")
	}
	names := []string{name}
	if u, err := lookUpUser(name); err == nil {
		names = append(names, u.Username, u.Uid)
	}
	groups := append([]string{group}, names...)
	if g, err := osuser.LookupGroup(group); err == nil {
		groups = append(groups, g.Gid)
	} else if g, err := osuser.LookupGroupId(group); err == nil {
		groups = append(groups, g.Name)
	}
	if m.UIDs, err = subordinate(subUID, names); err != nil {
		return m, err
	}
	m.GIDs, err = subordinate(subGID, groups)
	return m, err
}

func lookUpUser(name string) (*osuser.User, error) {
	if u, err := osuser.Lookup(name); err == nil {
		return u, nil
	}
	return osuser.LookupId(name)
}

// subordinate are the ranges that a file of subuid(5) gives to one of names, as
// a container's IDs from 0 on.
func subordinate(file string, names []string) (out []specs.LinuxIDMapping, err error) {
	all, err := readSubIDs(file)
	if err != nil {
		return nil, err
	}
	next := uint32(0)
	for _, r := range all {
		for _, n := range names {
			if r.owner == n && r.size > 0 && r.size <= math.MaxUint32-next {
				out = append(out, specs.LinuxIDMapping{ContainerID: next, HostID: r.first, Size: r.size})
				next += r.size
				break
			}
		}
	}
	if len(out) == 0 {
		return nil, errdef.Invalid.Errorf("Can't create ID mappings: no subordinate IDs for %q in %s; add a line like %s:100000:65536", names[0], file, names[0])
	}
	return out, nil
}

type subIDs struct {
	owner       string
	first, size uint32
}

func readSubIDs(file string) (out []subIDs, err error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		line := strings.TrimSpace(s.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		parts := strings.Split(line, ":")
		if len(parts) != 3 {
			return nil, errdef.Invalid.Errorf("%s: %q is not user:first:count", file, line)
		}
		first, err1 := strconv.ParseUint(parts[1], 10, 32)
		size, err2 := strconv.ParseUint(parts[2], 10, 32)
		if err := errors.Join(err1, err2); err != nil || first+size > math.MaxUint32 {
			return nil, errdef.Invalid.Errorf("%s: %q is not user:first:count", file, line)
		}
		out = append(out, subIDs{parts[0], uint32(first), uint32(size)})
	}
	return out, s.Err()
}

// ensureSubIDs gives owner 65536 IDs that nobody has, where it has none.
func ensureSubIDs(owner string, files ...string) error {
	const size, first = 65536, 100000 // as useradd does
	for _, file := range files {
		all, err := readSubIDs(file)
		if err != nil {
			return err
		}
		free, has := uint32(first), false
		for _, r := range all {
			free, has = max(free, r.first+r.size), has || r.owner == owner
		}
		if has {
			continue
		}
		if free > math.MaxUint32-size {
			return errdef.Unavailable.Errorf("%s has given all IDs away; give %s some of them", file, owner)
		}
		text, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if len(text) > 0 && text[len(text)-1] != '\n' {
			text = append(text, '\n')
		}
		text = fmt.Appendf(text, "%s:%d:%d\n", owner, free, size)
		if err := durable.ReplaceFile(file, text, 0o644); err != nil {
			return fmt.Errorf("give %s subordinate IDs: %w; write the line %s:%d:%d into %s yourself", owner, err, owner, free, size, file)
		}
	}
	return nil
}

// checkUserNamespace refuses, in Docker's words, what needs the host's rights.
func checkUserNamespace(h *container.HostConfig, ids userns.Mapping) error {
	switch {
	case len(ids.UIDs) == 0:
	case h.Privileged:
		return errdef.Invalid.Errorf("privileged mode is incompatible with user namespaces.  You must run the container in the host namespace when running privileged mode")
	case h.NetworkMode.IsHost():
		return errdef.Invalid.Errorf("cannot share the host's network namespace when user namespaces are enabled")
	case h.PidMode.IsHost():
		return errdef.Invalid.Errorf("cannot share the host PID namespace when user namespaces are enabled")
	}
	return nil
}

// mapping is that of a container which starts now, zero for the host's users.
func (e *Engine) mapping(h *container.HostConfig) userns.Mapping {
	if e.users == nil || h.UsernsMode.IsHost() {
		return userns.Mapping{}
	}
	return e.users.ids
}

// checkMapped refuses at the start what was created while there were no user
// namespaces, and what they cannot do.
func checkMapped(r *record, ids userns.Mapping) error {
	if err := checkUserNamespace(r.Host, ids); err != nil {
		return err
	}
	if len(ids.UIDs) > 0 && isForeign(r) {
		return errdef.Invalid.Errorf("containers of the runtime %s have no user namespaces here; create it with --userns=host or without --runtime", r.Host.Runtime)
	}
	return nil
}

// joinUser makes the container one of the user namespace of another, whose
// other namespaces belong to that.
func joinUser(in *spec.Input, name string, pid int) error {
	if len(in.IDs.UIDs) == 0 {
		return nil
	}
	ids, err := userns.Of(pid)
	if err != nil {
		return err
	}
	if len(ids.UIDs) == 0 {
		return errdef.Invalid.Errorf("container %s has the host's users; one that joins its namespaces needs --userns=host", name)
	}
	in.IDs, in.UserNS = ids, fmt.Sprintf("/proc/%d/ns/user", pid)
	return nil
}

// mapOption makes a bind of what is the container's own belong to its users. A
// file system that cannot do that is mounted as it is, like a bind.
func (e *Engine) mapOption(r *record, source string) []string {
	if len(e.mapping(r.Host).UIDs) == 0 {
		return nil
	}
	if !userns.CanMap(source, e.users.ns) {
		e.log.Warn("a file system cannot map IDs: its files are nobody's in a container with a user namespace", "container", r.Name, "path", source)
		return nil
	}
	return []string{"idmap"}
}
