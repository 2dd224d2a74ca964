package wire

import (
	"errors"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/overlay"
)

// An Op says what a Request asks for.
type Op string

// One connection carries one request and its answer; closing it gives the
// request up. Watch and Attach use their connections longer.
const (
	Watch    Op = "watch"    // answer: every container's handles, then events for as long as it is open
	Shutdown Op = "shutdown" // end the monitor
	Create   Op = "create"   // Launch; descriptors: the boot configuration, and those of Launch.User
	Start    Op = "start"
	Kill     Op = "kill" // Signal, All
	Wait     Op = "wait"
	Pause    Op = "pause"
	Resume   Op = "resume"
	Update   Op = "update" // Resources
	Delete   Op = "delete"
	List     Op = "list"
	Exec     Op = "exec" // Launch, ExecID; answer with the streams' ends
	WaitExec Op = "waitexec"
	Attach   Op = "attach" // Streams; answer with the streams' ends
	Resize   Op = "resize" // Width, Height

	// On an Attach connection: the client closed its input, or leaves without
	// doing so.
	CloseStdin Op = "closestdin"
	Detach     Op = "detach"

	// After a monitor died: Handles of a container, or of a further process of
	// one, which comes after it; the exit Code of one that became the client's
	// child; and that no more handles will come.
	Adopt  Op = "adopt"
	Exited Op = "exited"
	Settle Op = "settle"
)

// A Request is what a client sends.
type Request struct {
	Op     Op     `json:"op"`
	ID     string `json:"id,omitempty"`
	ExecID string `json:"exec,omitempty"`

	Launch    *Launch               `json:"launch,omitempty"`
	Streams   Streams               `json:"streams,omitzero"`
	Signal    int                   `json:"signal,omitempty"`
	All       bool                  `json:"all,omitempty"`
	Width     uint16                `json:"width,omitempty"`
	Height    uint16                `json:"height,omitempty"`
	Resources *specs.LinuxResources `json:"resources,omitempty"`
	Handles   []string              `json:"handles,omitempty"`
	Code      int                   `json:"code,omitempty"`
}

// Streams names the streams that are wanted.
type Streams struct {
	Stdin  bool `json:"in,omitempty"`
	Stdout bool `json:"out,omitempty"`
	Stderr bool `json:"err,omitempty"`
}

// A Launch is what the monitor must know to start a process; everything that
// happens inside the container is in the boot configuration, which the monitor
// passes on unread.
type Launch struct {
	Terminal bool   `json:"tty,omitempty"`
	Width    uint16 `json:"width,omitempty"`
	Height   uint16 `json:"height,omitempty"`

	Stdin       bool   `json:"stdin,omitempty"`
	Bundle      string `json:"bundle,omitempty"`
	StdinOnce   bool   `json:"stdinOnce,omitempty"`
	OOMScoreAdj *int   `json:"oom,omitempty"`
	Log         Log    `json:"log,omitzero"`

	Foreign *Foreign `json:"foreign,omitempty"`

	// User is set in a container with a user namespace. Then the descriptor
	// after the configuration's is that namespace, and those after it are the
	// first process's.
	User *User `json:"user,omitempty"`

	// Hooks run before the root is entered, if set; then the init waits for it.
	Hooks *Hooks `json:"hooks,omitempty"`

	// Limits are set by the monitor: in a user namespace a process may not
	// raise its own.
	Limits []specs.POSIXRlimit `json:"limits,omitempty"`

	Namespaces  []specs.LinuxNamespace           `json:"ns,omitempty"`
	CgroupsPath string                           `json:"cgroup,omitempty"`
	Resources   *specs.LinuxResources            `json:"resources,omitempty"`
	TimeOffsets map[string]specs.LinuxTimeOffset `json:"time,omitempty"`
	Seccomp     string                           `json:"seccomp,omitempty"` // file of a compiled filter, also for execs
}

// A User is user 0 of a user namespace.
type User struct {
	UID int    `json:"uid"` // on the host
	GID int    `json:"gid"`
	Dir string `json:"dir"` // where the first process starts: the mount point of its root, for it may not be able to find it itself
}

// Hooks are those that the monitor runs, and what all of a container are told.
type Hooks struct {
	List  []specs.Hook `json:"list,omitempty"`
	State specs.State  `json:"state"` // without the process ID
}

// A Foreign is another OCI runtime that makes the container. Then the
// descriptor of Create and Exec is a ForeignConfig, not a boot configuration.
type Foreign struct {
	Path string   `json:"path"`
	Args []string `json:"args,omitempty"` // before the command
}

// A ForeignConfig is what another runtime gets: a container or a process.
type ForeignConfig struct {
	Spec    *specs.Spec    `json:"spec,omitempty"` // Root.Path is set by the monitor
	Rootfs  *overlay.Mount `json:"rootfs,omitempty"`
	Process *specs.Process `json:"process,omitempty"`
}

// Log is where output goes.
type Log struct {
	Path     string   `json:"path,omitempty"`
	MaxSize  int64    `json:"size,omitempty"`
	MaxFiles int      `json:"files,omitempty"`
	Compress bool     `json:"gzip,omitempty"`
	Attrs    string   `json:"attrs,omitempty"`
	Buffer   int      `json:"buffer,omitempty"`
	Forward  *Forward `json:"forward,omitempty"`
}

// Forward is a log service that gets the output, too, or instead.
type Forward struct {
	Network string   `json:"net"`               // unixgram, unix, udp or tcp
	Address string   `json:"addr"`              // path, or IP address and port
	Journal []string `json:"journal,omitempty"` // fields, NAME=value, of each entry in journald's protocol
	Syslog  *Syslog  `json:"syslog,omitempty"`  // else this
}

// Syslog is how a syslog line looks.
type Syslog struct {
	Facility int    `json:"facility"`
	Format   string `json:"format"` // "", rfc3164, rfc5424 or rfc5424micro
	Tag      string `json:"tag"`
	Host     string `json:"host"`
}

// A Reply answers a Request. Err excludes the rest.
type Reply struct {
	Err      *Error   `json:"err,omitempty"`
	Pid      int      `json:"pid,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
	Exit     *Exit    `json:"exit,omitempty"`
	States   []State  `json:"states,omitempty"`
	Handles  []string `json:"handles,omitempty"` // names the descriptors sent along
}

// Exit says how a process ended.
type Exit struct {
	Code int       `json:"code"`
	At   time.Time `json:"at"`
	OOM  bool      `json:"oom,omitempty"`
}

// State describes a container.
type State struct {
	ID      string            `json:"id"`
	Pid     int               `json:"pid"`
	Bundle  string            `json:"bundle,omitempty"`
	Status  string            `json:"status"`
	Exit    *Exit             `json:"exit,omitempty"`
	Cgroups map[string]string `json:"cgroups,omitempty"`
}

// Event is what a Watch connection carries after its Reply.
type Event struct {
	Kind    string   `json:"kind"` // see the constants
	ID      string   `json:"id"`
	ExecID  string   `json:"exec,omitempty"` // of handles and gone: it is of this process
	Handles []string `json:"handles,omitempty"`
}

const (
	EventHandles = "handles" // descriptors to keep for the next monitor
	EventStdin   = "stdin"   // the container's input is closed: drop the handle
	EventGone    = "gone"    // deleted, or ended: drop all handles
	EventOOM     = "oom"
)

// Names of handles.
const (
	HandlePidfd   = "pidfd"
	HandleInit    = "init" // the socket of an init that waits for Start
	HandleStdin   = "stdin"
	HandleStdout  = "stdout"
	HandleStderr  = "stderr"
	HandleTTY     = "tty"
	HandleJournal = "journal" // output that is not in the log yet
)

// Error is an error on its way between processes.
type Error struct {
	Kind errdef.Kind `json:"kind,omitempty"`
	Text string      `json:"text"`
	Code int         `json:"code,omitempty"` // of a ProgramError
}

// A ProgramError says that the image's program could not be run.
type ProgramError struct {
	Code int
	Text string
}

func (e *ProgramError) Error() string { return e.Text }

// ErrorOf packs err; nil stays nil.
func ErrorOf(err error) *Error {
	if err == nil {
		return nil
	}
	e := &Error{Kind: errdef.Of(err), Text: err.Error()}
	if p, ok := errors.AsType[*ProgramError](err); ok {
		e.Code, e.Text = p.Code, p.Text
	}
	return e
}

// Err unpacks e.
func (e *Error) Err() error {
	switch {
	case e == nil:
		return nil
	case e.Code != 0:
		return &ProgramError{e.Code, e.Text}
	}
	return e.Kind.Wrap(errors.New(e.Text))
}
