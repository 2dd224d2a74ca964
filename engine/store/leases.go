package store

import (
	"sync"

	"github.com/minke-os/minke/oci"
)

// A lease keeps one stack of layers, and every layer added while it is held.
type lease struct {
	chain oci.ChainID
	since uint64
}

// Lease keeps a layer and all below it from garbage collection until release,
// and with them every layer that is added meanwhile, by whomever: so a pull or
// build takes one lease before its first layer and releases it after PutImage.
// The layer need not exist yet, and "" names none. Leases end with the process.
func (s *Store) Lease(chain oci.ChainID) (release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock++
	l := &lease{chain: chain, since: s.clock}
	s.leases[l] = struct{}{}
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.leases, l)
	}), nil
}

// known reports whether a layer is there, and if so counts it as added now.
func (s *Store) known(id oci.ChainID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.knownLocked(id)
}

func (s *Store) knownLocked(id oci.ChainID) bool {
	if _, err := s.Layer(id); err != nil {
		return false
	}
	s.touchLocked(id)
	return true
}

func (s *Store) touchLocked(id oci.ChainID) {
	s.clock++
	s.added[id] = s.clock
}

// leasedLocked lists the layers that leases name or that were added under one.
func (s *Store) leasedLocked() []oci.ChainID {
	var out []oci.ChainID
	oldest := s.clock + 1
	for l := range s.leases {
		out = append(out, l.chain)
		oldest = min(oldest, l.since)
	}
	for id, at := range s.added {
		if at > oldest {
			out = append(out, id)
		}
	}
	return out
}
