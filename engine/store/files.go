package store

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/oci"
)

// An object is content in files/. Its name is the first 108 bits of its
// SHA-256 in 18 letters, because "/.wh.x/" and 17 letters is the longest redirect
// for which both of a metadata inode's attributes fit into an ext4 inode of
// 256 bytes. A letter more, and every distinct file costs another block of
// 4 KiB (measured). As the name alone is too short to trust, the object has
// its full digest in an attribute, which must match before it is shared.
//
// A redirect must begin with a name that no layer can have. The kernel follows
// it through the layers below first, and where one of them has a directory of
// that name, it forgets that there are data-only layers: the file cannot be
// read (EIO; seen with Linux 6.18, in ovl_check_redirect). What begins with
// ".wh." is a whiteout in a tar and never comes into a layer.
//
// For hard-linked layers the inode carries the metadata too, so the digest is
// taken over content digest and metadata, see linkKey.

// alphabet is that of URL-safe base 64; files/ has a directory for each letter.
const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

const nameLen = 18

// digestAttr holds the digest's 32 bytes.
const digestAttr = "trusted.minke.sha256"

type sum [32]byte

// name is the object's name; its path below files/ is objectPath(name).
func (d sum) name() string { return base64.RawURLEncoding.EncodeToString(d[:])[:nameLen] }

func (d sum) digest() oci.Digest { return oci.Digest(fmt.Sprintf("%s%x", oci.Prefix, d[:])) }

func objectPath(name string) string { return whiteoutPrefix + name[:1] + "/" + name[1:] }

func (s *Store) objectFile(name string) string { return s.path("files", objectPath(name)) }

// objectDir is where objects are whose names begin with the letter.
func (s *Store) objectDir(letter string) string { return s.path("files", whiteoutPrefix+letter) }

// setDigest marks an object with its full digest.
func setDigest(f *os.File, d sum) error {
	if err := unix.Fsetxattr(int(f.Fd()), digestAttr, d[:], 0); err != nil {
		return &os.PathError{Op: "setxattr " + digestAttr, Path: f.Name(), Err: err}
	}
	return nil
}

// holds reports whether path is the object with digest d.
func holds(path string, d sum) (bool, error) {
	var got sum
	n, err := unix.Lgetxattr(path, digestAttr, got[:])
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil || n != len(got) || got != d {
		return false, fmt.Errorf("object %s is damaged or not ours: it is not marked as %s", path, d.digest())
	}
	return true, nil
}

// pin keeps an object from GC until unpin and reports whether it is there.
// Whoever finds it there may rely on it.
func (s *Store) pin(name string, d sum) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pins[name]++
	if s.kept != nil {
		s.kept[name] = struct{}{}
	}
	return s.thereLocked(name, d)
}

func (s *Store) thereLocked(name string, d sum) (bool, error) {
	there, err := holds(s.objectFile(name), d)
	if there {
		delete(s.claims, name)
	}
	return there, err
}

// A pinSet pins any number of objects in memory that does not grow: it has a bit
// for each value of the first bits of a name, which is a digest's. So it pins
// some that nobody asked for, among a million objects every
// fifth; GC takes those the next time.
type pinSet [1 << (pinBits - 3)]byte

const pinBits = 22

func pinBit(name string) (at int, bit byte) {
	var b [4]byte
	base64.RawURLEncoding.Decode(b[:3], []byte(name[:4])) // made of this alphabet, or no object's
	i := binary.BigEndian.Uint32(b[:]) >> (32 - pinBits)
	return int(i / 8), 1 << (i % 8)
}

func (p *pinSet) add(name string) {
	at, bit := pinBit(name)
	p[at] |= bit
}

func (p *pinSet) has(name string) bool {
	if len(name) < nameLen {
		return false
	}
	at, bit := pinBit(name)
	return p[at]&bit != 0
}

// newPinSet gives one that counts until it is dropped.
func (s *Store) newPinSet() *pinSet {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := new(pinSet)
	s.pinSets[p] = struct{}{}
	if s.kept != nil {
		s.keptSets = append(s.keptSets, p)
	}
	return p
}

func (s *Store) dropPinSet(p *pinSet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pinSets, p)
}

// pinIn is pin with a set.
func (s *Store) pinIn(p *pinSet, name string, d sum) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.add(name)
	return s.thereLocked(name, d)
}

func (s *Store) pinnedLocked(name string) bool {
	if s.pins[name] > 0 {
		return true
	}
	for p := range s.pinSets {
		if p.has(name) {
			return true
		}
	}
	return false
}

// keptLocked reports whether an object has been pinned since the running GC began.
func (s *Store) keptLocked(name string) bool {
	_, ok := s.kept[name]
	return ok || slices.ContainsFunc(s.keptSets, func(p *pinSet) bool { return p.has(name) })
}

func (s *Store) unpin(names map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range names {
		if s.pins[name]--; s.pins[name] == 0 {
			delete(s.pins, name)
		}
	}
}

// adopt moves new objects, whose bytes are on the disk, out of a staging
// directory into files/, and says which directories have new names. An object
// that somebody else has adopted meanwhile stays behind.
func (s *Store) adopt(staged string, names map[string]bool) (touched map[string]bool, err error) {
	touched = map[string]bool{}
	for name, isNew := range names {
		if !isNew {
			continue
		}
		if err := s.move(staged, name, false); err != nil {
			return nil, err
		}
		touched[name[:1]] = true
	}
	return touched, nil
}

// move is adopt for one object. Claimed, it may be removed again with unclaim as
// long as nobody else has found it.
func (s *Store) move(staged, name string, claim bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := unix.Renameat2(unix.AT_FDCWD, staged+"/"+name, unix.AT_FDCWD, s.objectFile(name), unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, unix.EEXIST):
		delete(s.claims, name)
	case err != nil:
		return &os.LinkError{Op: "rename", Old: staged + "/" + name, New: s.objectFile(name), Err: err}
	case claim:
		s.claims[name] = struct{}{}
	}
	return nil
}

// unclaim gives up claims to objects and, unless they are in a layer now,
// removes those of them that are still claimed.
func (s *Store) unclaim(names []string, keep bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		if _, ok := s.claims[name]; ok && !keep {
			os.Remove(s.objectFile(name)) // what stays GC will remove
		}
		delete(s.claims, name)
	}
}
