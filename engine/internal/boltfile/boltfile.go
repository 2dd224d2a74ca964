// Package boltfile reads files of bbolt that may be damaged. bbolt believes its
// pages: over a damaged one it panics, or goes round in a circle until memory
// ends. Here every page is looked at before it is believed, and none twice.
//
// The format is that of bbolt 1.3 and later (its internal/common/page.go): pages,
// of which 0 and 1 are heads, and the one with the higher transaction counts;
// trees of branch and leaf pages; a bucket is a value of 16 bytes, the number of
// its tree's root and a counter, and where that number is 0 a leaf page behind
// them.
package boltfile

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"os"

	"go.etcd.io/bbolt"
)

const (
	headerSize  = 16 // of a page: number 8, kind 2, count 2, further pages 4
	elementSize = 16 // branch: position 4, key 4, page 8; leaf: kind 4, position 4, key 4, value 4
	metaSize    = 64 // behind the header: see heads
	magic       = 0xED0CDAED
	version     = 2

	branchPage, leafPage, freelistPage = 0x01, 0x02, 0x10
	bucketElement                      = 0x01
	bucketSize                         = 16
	noFreelist                         = 1<<64 - 1
)

var order = binary.NativeEndian

// Check tells what is wrong with a file; nil is that bbolt can read all of it. A
// page that is whole, but of another time, may pass.
func Check(path string) error {
	f, err := read(path)
	if err != nil {
		return err
	}
	t := tree{f: f}
	t.page(f.root) // writes nothing, so it has no error
	return f.damage
}

// Copy copies what can be read. An error is one of writing.
func Copy(path string, to *bbolt.Tx) error {
	f, err := read(path)
	if err != nil {
		return nil // nothing can
	}
	t := tree{f: f, into: to}
	return t.page(f.root)
}

// file is a file's content, and what was met in it.
type file struct {
	data   []byte
	size   uint64 // of a page
	root   uint64 // of the tree of buckets
	end    uint64 // pages up to here are in use
	seen   map[uint64]bool
	damage error // the first
}

func (f *file) bad(format string, args ...any) {
	if f.damage == nil {
		f.damage = fmt.Errorf(format, args...)
	}
}

func read(path string) (*file, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f := &file{data: data, seen: map[uint64]bool{}}
	var list, newest uint64
	// The second head begins where the first page ends, which the first one says.
	for _, at := range []int{0, os.Getpagesize()} {
		if at > 0 && f.size > 0 {
			at = int(f.size)
		}
		m, ok := f.head(at)
		if tx := order.Uint64(m[48:]); ok && tx >= newest {
			newest = tx
			f.size, f.root, list, f.end = uint64(order.Uint32(m[8:])), order.Uint64(m[16:]), order.Uint64(m[32:]), order.Uint64(m[40:])
		}
	}
	if f.size == 0 {
		return nil, fmt.Errorf("neither head of the file is right")
	}
	f.end = min(f.end, uint64(len(data))/f.size)
	if list != noFreelist {
		if p := f.take(list); p.kind != freelistPage {
			f.bad("page %d is no list of free pages", list)
		}
	}
	return f, nil
}

// head is: magic 4, version 4, page size 4, flags 4, root 8, counter 8, list of
// free pages 8, end 8, transaction 8, checksum 8.
func (f *file) head(at int) ([metaSize]byte, bool) {
	var m [metaSize]byte
	if len(f.data) < at+headerSize+metaSize {
		return m, false
	}
	copy(m[:], f.data[at+headerSize:])
	sum := fnv.New64a()
	sum.Write(m[:metaSize-8])
	return m, order.Uint32(m[:]) == magic && order.Uint32(m[4:]) == version && order.Uint32(m[8:]) >= 512 && order.Uint64(m[metaSize-8:]) == sum.Sum64()
}

// page is one page with those that continue it, or a small one within a value.
type page struct {
	data  []byte
	kind  uint16
	count int
}

func pageOf(data []byte) page {
	return page{data, order.Uint16(data[8:]), int(order.Uint16(data[10:]))}
}

// take gives a page, the zero one if it cannot be believed.
func (f *file) take(id uint64) page {
	if id < 2 || id >= f.end {
		f.bad("page %d is not in the file", id)
		return page{}
	}
	data := f.data[id*f.size:]
	further := uint64(order.Uint32(data[12:]))
	switch {
	case order.Uint64(data) != id:
		f.bad("page %d is something else", id)
		return page{}
	case id+1+further > f.end:
		f.bad("page %d goes on behind the file's end", id)
		return page{}
	}
	for i := id; i <= id+further; i++ {
		if f.seen[i] {
			f.bad("page %d is in two places", i)
			return page{}
		}
		f.seen[i] = true
	}
	return pageOf(data[:(1+further)*f.size])
}

// element is the i-th of a page; ok is false if it reaches beyond it.
func (p page) element(i int) (key, value []byte, child uint64, isBucket, ok bool) {
	at := headerSize + i*elementSize
	if at+elementSize > len(p.data) {
		return nil, nil, 0, false, false
	}
	e := p.data[at:]
	var position, keySize, valueSize uint64
	if p.kind == branchPage {
		position, keySize, child = uint64(order.Uint32(e)), uint64(order.Uint32(e[4:])), order.Uint64(e[8:])
	} else {
		isBucket = order.Uint32(e)&bucketElement != 0
		position, keySize, valueSize = uint64(order.Uint32(e[4:])), uint64(order.Uint32(e[8:])), uint64(order.Uint32(e[12:]))
	}
	if position+keySize+valueSize > uint64(len(e)) || isBucket && valueSize < bucketSize {
		return nil, nil, 0, false, false
	}
	e = e[position:]
	return e[:keySize:keySize], e[keySize : keySize+valueSize : keySize+valueSize], child, isBucket, true
}

// tree is a bucket's, or that of all buckets.
type tree struct {
	f    *file
	into bucketMaker // nil: it is only looked at
	last []byte      // key
}

type bucketMaker interface {
	CreateBucketIfNotExists(name []byte) (*bbolt.Bucket, error)
}

func (t *tree) page(id uint64) error { return t.pairs(id, t.f.take(id)) }

// pairs goes through a page and those below it. id is for messages.
func (t *tree) pairs(id uint64, p page) error {
	if p.data == nil {
		return nil
	}
	if p.kind != branchPage && p.kind != leafPage {
		t.f.bad("page %d is neither branch nor leaf", id)
		return nil
	}
	for i := range p.count {
		key, value, child, isBucket, ok := p.element(i)
		var err error
		switch {
		case !ok:
			t.f.bad("page %d: a record reaches beyond it", id)
		case p.kind == branchPage:
			err = t.page(child)
		case t.last != nil && bytes.Compare(key, t.last) <= 0:
			t.f.bad("page %d: records are out of order", id)
		default:
			t.last = key
			err = t.pair(id, key, value, isBucket)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) pair(id uint64, key, value []byte, isBucket bool) error {
	below := tree{f: t.f}
	if t.into != nil {
		b, isIn := t.into.(*bbolt.Bucket)
		if !isBucket && isIn {
			return b.Put(key, value)
		}
		if !isBucket {
			return nil // at the top there are only buckets
		}
		made, err := t.into.CreateBucketIfNotExists(key)
		if err != nil {
			return err
		}
		below.into = made
	}
	if !isBucket {
		return nil
	}
	switch root := order.Uint64(value); {
	case root != 0:
		return below.page(root)
	case len(value) < bucketSize+headerSize:
		t.f.bad("page %d: a bucket is cut short", id)
		return nil
	}
	return below.pairs(id, pageOf(value[bucketSize:]))
}
