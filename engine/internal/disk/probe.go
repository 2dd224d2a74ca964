package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"
)

// A FileSystem is what the first blocks of a partition say.
type FileSystem struct {
	Type  string // as mount(8) has it
	Label string
	UUID  string // as blkid(8) prints it: a UUID, or the serial number of vfat, exfat and ntfs
	Dirty bool   // not unmounted the last time
}

// Probe recognizes ext2 to ext4, xfs, btrfs, f2fs, vfat, exfat, ntfs and
// iso9660. The zero FileSystem is for anything else, and for bytes that
// contradict themselves.
//
// Offsets are those of the kernel's headers (fs/ext4/ext4.h, libxfs/xfs_format.h,
// btrfs_tree.h, f2fs_fs.h, msdos_fs.h, fs/exfat/exfat_raw.h, fs/ntfs3/ntfs.h).
func Probe(r io.ReaderAt) FileSystem {
	head := read(r, 0, 0x1400)
	for _, probe := range []func(io.ReaderAt, []byte) (FileSystem, bool){
		probeXFS, probeExt, probeF2FS, probeBtrfs, probeExFAT, probeNTFS, probeFAT, probeISO,
	} {
		if fs, ok := probe(r, head); ok {
			return fs
		}
	}
	return FileSystem{}
}

// read returns n bytes, zeros where the device ends.
func read(r io.ReaderAt, offset int64, n int) []byte {
	b := make([]byte, n)
	if offset >= 0 {
		r.ReadAt(b, offset)
	}
	return b
}

func at(b []byte, offset int, magic string) bool {
	return bytes.HasPrefix(b[offset:], []byte(magic))
}

func uuid(b []byte) string {
	if bytes.Equal(b[:16], make([]byte, 16)) {
		return ""
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// text ends at the first zero, and is without blanks behind.
func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return strings.TrimRight(string(b), " ")
}

func wideText(b []byte) string {
	var units []uint16
	for ; len(b) >= 2; b = b[2:] {
		u := binary.LittleEndian.Uint16(b)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units))
}

func probeExt(_ io.ReaderAt, head []byte) (FileSystem, bool) {
	sb := head[1024:]
	if !at(sb, 0x38, "\x53\xef") {
		return FileSystem{}, false
	}
	compat, incompat := binary.LittleEndian.Uint32(sb[0x5c:]), binary.LittleEndian.Uint32(sb[0x60:])
	const hasJournal, recover, newer = 0x4, 0x4, ^uint32(0x2 | 0x4 | 0x10) // newer: what ext3 does not know
	fs := FileSystem{Type: "ext2", UUID: uuid(sb[0x68:]), Label: text(sb[0x78:0x88])}
	switch {
	case incompat&newer != 0:
		fs.Type = "ext4"
	case compat&hasJournal != 0:
		fs.Type = "ext3"
	}
	state := binary.LittleEndian.Uint16(sb[0x3a:])
	fs.Dirty = state&1 == 0 || state&2 != 0 || incompat&recover != 0
	return fs, true
}

func probeXFS(_ io.ReaderAt, head []byte) (FileSystem, bool) {
	return FileSystem{Type: "xfs", UUID: uuid(head[32:]), Label: text(head[108:120])}, at(head, 0, "XFSB")
}

func probeBtrfs(r io.ReaderAt, _ []byte) (FileSystem, bool) {
	sb := read(r, 0x10000, 0x22b)
	return FileSystem{Type: "btrfs", UUID: uuid(sb[0x20:]), Label: text(sb[0x12b:0x22b])}, at(sb, 0x40, "_BHRfS_M")
}

func probeF2FS(_ io.ReaderAt, head []byte) (FileSystem, bool) {
	sb := head[1024:]
	return FileSystem{Type: "f2fs", UUID: uuid(sb[0x6c:]), Label: wideText(sb[0x7c : 0x7c+1024])}, at(sb, 0, "\x10\x20\xf5\xf2")
}

func probeISO(r io.ReaderAt, _ []byte) (FileSystem, bool) {
	sb := read(r, 0x8000, 0x48)
	return FileSystem{Type: "iso9660", Label: text(sb[0x28:0x48])}, at(sb, 1, "CD001")
}

// serial is how Windows shows a volume's number.
func serial(b []byte) string {
	n := binary.LittleEndian.Uint32(b)
	return fmt.Sprintf("%04X-%04X", n>>16, n&0xffff)
}

// A root directory is searched for the label no further than this, in bytes.
const rootLimit = 64 << 10

func probeFAT(r io.ReaderAt, head []byte) (FileSystem, bool) {
	if head[510] != 0x55 || head[511] != 0xaa {
		return FileSystem{}, false
	}
	sector := int64(binary.LittleEndian.Uint16(head[11:]))
	cluster := int64(head[13])
	reserved, tables := int64(binary.LittleEndian.Uint16(head[14:])), int64(head[16])
	if sector < 512 || sector > 4096 || sector&(sector-1) != 0 || cluster == 0 || tables == 0 || reserved == 0 {
		return FileSystem{}, false
	}
	fs := FileSystem{Type: "vfat"}
	var root int64
	switch {
	case at(head, 0x52, "FAT32"):
		fs.UUID, fs.Label, fs.Dirty = serial(head[0x43:]), text(head[0x47:0x52]), head[0x41]&1 != 0
		first := int64(binary.LittleEndian.Uint32(head[0x2c:])) - 2
		root = (reserved + tables*int64(binary.LittleEndian.Uint32(head[0x24:])) + first*cluster) * sector
	case at(head, 0x36, "FAT"):
		fs.UUID, fs.Label, fs.Dirty = serial(head[0x27:]), text(head[0x2b:0x36]), head[0x25]&1 != 0
		root = (reserved + tables*int64(binary.LittleEndian.Uint16(head[0x16:]))) * sector
	default:
		return FileSystem{}, false
	}
	// The label of the root directory is the one that people change.
	const volumeID, longName = 0x08, 0x0f
	for dir := read(r, root, rootLimit); len(dir) >= 32 && dir[0] != 0; dir = dir[32:] {
		if a := dir[11]; dir[0] != 0xe5 && a&longName != longName && a&volumeID != 0 {
			fs.Label = text(dir[:11])
			break
		}
	}
	if fs.Label == "NO NAME" {
		fs.Label = ""
	}
	return fs, true
}

func probeExFAT(r io.ReaderAt, head []byte) (FileSystem, bool) {
	if !at(head, 3, "EXFAT   ") || head[0x6c] > 12 || head[0x6d] > 25 {
		return FileSystem{}, false
	}
	fs := FileSystem{Type: "exfat", UUID: serial(head[0x64:]), Dirty: head[0x6a]&2 != 0}
	heap := int64(binary.LittleEndian.Uint32(head[0x58:])) << head[0x6c]
	root := heap + (int64(binary.LittleEndian.Uint32(head[0x60:]))-2)<<(head[0x6c]+head[0x6d])
	const label = 0x83
	for dir := read(r, root, rootLimit); len(dir) >= 32 && dir[0] != 0; dir = dir[32:] {
		if dir[0] == label {
			fs.Label = wideText(dir[2 : 2+2*min(int(dir[1]), 11)])
			break
		}
	}
	return fs, true
}

func probeNTFS(r io.ReaderAt, head []byte) (FileSystem, bool) {
	if !at(head, 3, "NTFS    ") {
		return FileSystem{}, false
	}
	fs := FileSystem{Type: "ntfs3", UUID: fmt.Sprintf("%016X", binary.LittleEndian.Uint64(head[0x48:]))}
	cluster := int64(binary.LittleEndian.Uint16(head[11:])) * int64(head[13])
	size := int64(int8(head[0x40])) * cluster // of a record, in clusters, or
	if n := int8(head[0x40]); n < 0 && n > -16 {
		size = 1 << -n // as a power of two
	}
	if cluster <= 0 || size < 256 || size > rootLimit {
		return fs, true
	}
	const volume = 3 // the record of $Volume
	rec := read(r, int64(binary.LittleEndian.Uint64(head[0x30:]))*cluster+volume*size, int(size))
	if !at(rec, 0, "FILE") {
		return fs, true
	}
	const volumeName, volumeInfo = 0x60, 0x70
	for attr := rec[min(int(binary.LittleEndian.Uint16(rec[0x14:])), len(rec)):]; len(attr) >= 0x18; {
		kind, length := binary.LittleEndian.Uint32(attr), binary.LittleEndian.Uint32(attr[4:])
		if length < 0x18 || uint64(length) > uint64(len(attr)) {
			break
		}
		n, off := uint64(binary.LittleEndian.Uint32(attr[0x10:])), uint64(binary.LittleEndian.Uint16(attr[0x14:]))
		if off+n <= uint64(length) && attr[8] == 0 { // resident
			switch value := attr[off : off+n]; {
			case kind == volumeName:
				fs.Label = wideText(value)
			case kind == volumeInfo && n >= 12:
				fs.Dirty = value[10]&1 != 0
			}
		}
		attr = attr[length:]
	}
	return fs, true
}
