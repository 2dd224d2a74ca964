package store

import (
	"github.com/minke-os/minke/oci"
)

// Shared says for each of some images, given with their top layers, how many
// bytes of its size others of them have too, in whatever layer: content is
// stored once, so that much stays when the image goes. It reads all their tocs.
func (s *Store) Shared(images map[oci.ImageID]oci.ChainID) (map[oci.ImageID]int64, error) {
	u := &usage{users: map[oci.ChainID][]oci.ImageID{}, owner: map[string]oci.ImageID{}, shared: map[oci.ImageID]int64{}}
	for id, top := range images {
		release, err := s.Lease(top)
		if err != nil {
			return nil, err
		}
		defer release()
		for chain := top; chain != ""; {
			l, err := s.Layer(chain)
			if err != nil {
				return nil, err
			}
			u.users[chain] = append(u.users[chain], id)
			chain = l.Parent
		}
	}
	for _, pass := range []func(oci.ChainID, content){u.own, u.add} {
		for chain := range u.users {
			err := readToc(s.layerPath(chain, "toc"), func([]byte) error { return nil }, func(c content) error {
				pass(chain, c)
				return nil
			})
			if err != nil {
				return nil, err
			}
		}
	}
	return u.shared, nil
}

type usage struct {
	users  map[oci.ChainID][]oci.ImageID
	owner  map[string]oci.ImageID // of an object; "" if it has several
	shared map[oci.ImageID]int64
}

// own notes which image alone has an object.
func (u *usage) own(chain oci.ChainID, c content) {
	id := u.users[chain][0]
	if len(u.users[chain]) > 1 {
		id = ""
	}
	if old, known := u.owner[c.object]; known && old != id {
		id = ""
	}
	u.owner[c.object] = id
}

func (u *usage) add(chain oci.ChainID, c content) {
	if u.owner[c.object] != "" {
		return
	}
	for _, id := range u.users[chain] {
		u.shared[id] += c.size
	}
}
