package monitor

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/runtime/jsonlog"
)

// A journal is memory that outlives the monitor: a file without a name, of
// which the client has a duplicate. Output is read into it, so that what was
// taken from a pipe and not yet written to the log is not lost with the
// monitor. It costs no system call.
//
// For each stream it has one word of state (length of the chunk at hand, and
// of the unfinished line), how far the writing of the
// chunk is, and the bytes of both. After a crash what was half written is cut
// off the log, and the chunk is written again unless it was written whole.
type journal struct {
	f   *os.File
	mem []byte
}

const (
	chunkSize   = 32 << 10
	partSize    = 17 << 10 // a piece of a line and a little more
	journalHead = 4 << 10
	streamSize  = journalHead + chunkSize + partSize + 3<<10 // whole pages
	journalSize = 2 * streamSize
)

func newJournal() (*journal, error) {
	fd, err := unix.MemfdCreate("output", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "output")
	if err := unix.Ftruncate(fd, journalSize); err != nil {
		f.Close()
		return nil, os.NewSyscallError("ftruncate", err)
	}
	return openJournal(f)
}

// openJournal takes over f.
func openJournal(f *os.File) (*journal, error) {
	mem, err := unix.Mmap(rawFD(f), 0, journalSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		f.Close()
		return nil, os.NewSyscallError("mmap", err)
	}
	return &journal{f, mem}, nil
}

func (j *journal) close() {
	unix.Munmap(j.mem)
	j.f.Close()
}

// stream is the part of stdout (0) or stderr (1).
func (j *journal) stream(i int) *streamJournal {
	m := j.mem[i*streamSize : (i+1)*streamSize]
	return &streamJournal{
		state: (*atomic.Uint64)(unsafe.Pointer(&m[0])),
		size:  (*atomic.Int64)(unsafe.Pointer(&m[8])),
		plan:  (*atomic.Uint64)(unsafe.Pointer(&m[16])),
		blank: m[24:32],
		chunk: m[journalHead : journalHead+chunkSize],
		part:  m[journalHead+chunkSize:][:partSize],
	}
}

type streamJournal struct {
	state *atomic.Uint64 // chunk's length <<32 | part's length
	size  *atomic.Int64  // of the log before the chunk; notWritten until then
	plan  *atomic.Uint64 // how much is about to be taken
	blank []byte         // what chunk begins with before something is taken
	chunk []byte
	part  []byte
}

// notWritten is the size while the chunk waits for its turn; jsonlog.Written
// comes after.
const notWritten = -1

// expect notes that n bytes will be taken from the pipe. The monitor may die
// after the kernel has copied them and before it can note anything: then the
// chunk no longer begins with what was written there now.
func (s *streamJournal) expect(n int) {
	binary.NativeEndian.PutUint64(s.blank, rand.Uint64())
	copy(s.chunk, s.blank)
	s.plan.Store(uint64(n))
}

// begin notes that chunk[:n] was taken from the pipe.
func (s *streamJournal) begin(n int) {
	s.size.Store(notWritten)
	s.state.Store(uint64(n)<<32 | s.state.Load()&0xffffffff)
	s.plan.Store(0)
}

// settlePlan finds out whether what was expected was taken.
func (s *streamJournal) settlePlan() {
	n := int(s.plan.Load())
	if n == 0 || n > len(s.chunk) || s.state.Load()>>32 > 0 {
		return
	}
	if look := min(n, len(s.blank)); !bytes.Equal(s.chunk[:look], s.blank[:look]) {
		s.begin(n)
	}
}

// end notes that the chunk is in the log, but for the beginning of a line.
// Should it be interrupted, the log has grown and the old part is of no use;
// or the part has only become longer.
func (s *streamJournal) end(pending []byte) {
	n := copy(s.part, pending)
	s.state.Store(uint64(n))
}

// undo takes back what the dead monitor was writing when it died, if this was
// the stream. It comes before both streams' replay.
func (s *streamJournal) undo(log *jsonlog.Writer) error {
	s.settlePlan()
	if size := s.size.Load(); s.state.Load()>>32 > 0 && size >= 0 {
		if err := log.Truncate(size); err != nil {
			return err
		}
		s.size.Store(notWritten)
	}
	return nil
}

// replay gives log what the dead monitor had of the stream.
func (s *streamJournal) replay(log *jsonlog.Stream) {
	state := s.state.Load()
	n, part := int(state>>32), int(state&0xffffffff)
	if n > len(s.chunk) || part > len(s.part) {
		return
	}
	log.Restore(s.part[:part])
	if s.size.Load() == notWritten {
		log.Write(s.chunk[:n])
	} else {
		log.Skip(s.chunk[:n])
	}
	s.end(log.Pending())
}
