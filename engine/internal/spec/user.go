package spec

import (
	"io"

	"github.com/moby/sys/user"

	"github.com/minke-os/minke/internal/errdef"
)

// LookUp finds a container's user ("name", "uid:gid", …) in the image's
// passwd and group files, which may be nil. Errors are of kind Invalid, in
// Docker's words.
func LookUp(name string, groupAdd []string, passwd, group io.ReadSeeker) (User, error) {
	u, err := user.GetExecUser(name, &user.ExecUser{Home: "/"}, reader(passwd), reader(group))
	if err != nil {
		return User{}, errdef.Invalid.Wrap(err) // it says which
	}
	out := User{UID: uint32(u.Uid), GID: uint32(u.Gid), Home: u.Home}
	// The runtime sets the primary group last, so it belongs to the set.
	out.Groups = append(out.Groups, out.GID)
	for _, g := range u.Sgids {
		if uint32(g) != out.GID {
			out.Groups = append(out.Groups, uint32(g))
		}
	}
	if len(groupAdd) == 0 {
		return out, nil
	}
	if group != nil {
		if _, err := group.Seek(0, io.SeekStart); err != nil {
			return User{}, err
		}
	}
	extra, err := user.GetAdditionalGroups(groupAdd, reader(group))
	if err != nil {
		return User{}, errdef.Invalid.Wrap(err)
	}
	for _, g := range extra {
		out.Groups = append(out.Groups, uint32(g))
	}
	return out, nil
}

// reader keeps a nil file a nil interface.
func reader(r io.ReadSeeker) io.Reader {
	if r == nil {
		return nil
	}
	return r
}
