// Package runtime runs containers from OCI configurations.
//
// This file is the whole of what the engine sees: a Monitor. One monitor
// process is the parent of all containers; minked talks to it over a socket
// in Options.Dir. The engine asks it to create (namespaces exist, the root is
// being built, nothing of the image has run), to start, to signal, to exec and
// to attach; the monitor copies output into log files and keeps exit codes
// until they are fetched.
//
// What dies and what holds: when minked dies the monitor and all containers go
// on, output goes on into the log files, and Open finds them again. When the
// monitor dies, minked, which keeps duplicates of the containers' output
// pipes, pidfds and terminals, starts another and hands them over; containers
// notice nothing. When both die, containers may be found by Open as lost; they
// are killed and reported with exit code 137.
package runtime

import (
	"io"
	"log/slog"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/internal/overlay"
	"github.com/minke-os/minke/runtime/internal/wire"
)

// Options say where and how the monitor runs.
type Options struct {
	Dir    string // state and sockets; lost at reboot, as it should be
	Binary string // the minke-runtime program
	Logger *slog.Logger

	// OnOOM is called, if set, when the kernel kills a process of the
	// container for lack of memory. It must not block.
	OnOOM func(containerID string)
}

// A Container is what Create needs.
type Container struct {
	ID     string // file name safe, unique
	Bundle string // directory that holds config.json
	Spec   *specs.Spec

	// Rootfs, if set, is mounted by the container's init in its own mount
	// namespace, so no mount of ours exists outside. Otherwise Spec.Root.Path
	// is a directory that is ready.
	Rootfs *overlay.Mount

	Stdin     bool // keep standard input open for Attach; otherwise it is /dev/null
	StdinOnce bool // close standard input when the first attached client closes it

	Log Log

	// Foreign, if set, makes the container instead of this runtime: another
	// OCI runtime. Rootfs must be set then. Further processes are made by it,
	// too; everything else holds as for our own.
	Foreign *Foreign
}

// A Foreign is another OCI runtime's command.
type Foreign struct {
	Path string
	Args []string // before its commands
}

// Log says where output goes. The zero value discards it.
type Log struct {
	Path     string // json-file format, see package runtime/jsonlog; "": no file
	MaxSize  int64  // bytes; at this size the file is rotated; 0: never
	MaxFiles int    // files kept, the current one included; at least 1
	Compress bool   // rotated files, with gzip
	Attrs    string // a JSON object for each entry, or ""

	// Buffer, if not 0, is how many bytes of output wait in memory for a slow
	// disk or service. Beyond that output is lost rather than that the container
	// waits; so is what waits when the monitor dies.
	Buffer int

	// Forward, if set, is a service that gets the output, too. Path may be
	// empty then.
	Forward *Forward
}

// Forward names a log service by its socket: journald's or a syslog's.
type Forward = wire.Forward

// Syslog is how a line to a syslog looks.
type Syslog = wire.Syslog

// An Exit says how a process ended.
type Exit struct {
	Code int // 0–255; 128+n for signal n
	At   time.Time
	OOM  bool // the kernel killed it, or a child of it, for lack of memory
}

// A State is what List reports of one container.
type State struct {
	ID      string
	Pid     int // of its first process, in the host's pid namespace
	Bundle  string
	Status  Status
	Exit    *Exit // when Stopped
	Cgroups map[string]string
}

// Status is a container's state in the words of the OCI runtime specification.
type Status string

const (
	Created Status = "created" // init waits for Start
	Running Status = "running"
	Paused  Status = "paused"
	Stopped Status = "stopped"
)

// A StartError is a failure to run the program, with the exit code that
// shells and Docker give it: 127 not found, 126 not executable.
type StartError struct {
	Code int
	Err  error
}

func (e *StartError) Error() string { return e.Err.Error() }
func (e *StartError) Unwrap() error { return e.Err }

// Exec is another process in a running container.
type Exec struct {
	ID      string         // unique within the container
	Process *specs.Process // as in config.json
	Stdin   bool
	Stdout  bool // false: discarded
	Stderr  bool
	Foreign bool // the container was made by another runtime
}

// Streams are the ends of an attachment. Fields that were not asked for are
// nil; with a terminal Stderr is nil and everything comes by Stdout.
// Reads give EOF when the process and its children closed their side, or when
// the monitor died. Closing a Streams detaches; it does not stop the process.
type Streams struct {
	Stdin  io.WriteCloser // Close ends the process's input, subject to StdinOnce
	Stdout io.ReadCloser
	Stderr io.ReadCloser

	conn *wire.Conn // of an attachment
}

// A WindowSize is the size of a terminal in characters.
type WindowSize struct{ Width, Height uint16 }
