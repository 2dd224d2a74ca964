// Package command is the command line of minke-runtime: the inner lives of the
// program, the first process that docker run --init asks for, and an OCI
// runtime.
//
// The OCI commands do without a monitor, see package solo: their callers, such
// as conmon and containerd's shim, want to be the container's parent.
package command

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/runtime/internal/boot"
	"github.com/minke-os/minke/runtime/internal/monitor"
	"github.com/minke-os/minke/runtime/internal/solo"
	"github.com/minke-os/minke/runtime/internal/wire"
)

// Main runs the program and returns its exit code.
func Main(args []string) int {
	if filepath.Base(os.Args[0]) == FirstProcess {
		return first(args)
	}
	if len(args) > 0 {
		switch args[0] {
		case "init":
			boot.Main()
		case "join":
			boot.Join()
		case "monitor":
			return report(runMonitor(args[1:]), global{})
		}
	}
	return oci(args)
}

// readyFD tells the starter that clients can connect: it is closed then.
const readyFD = 3

func runMonitor(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: minke-runtime monitor DIR")
	}
	ready := os.NewFile(readyFD, "ready")
	err := monitor.Run(args[0], func() { ready.Close() })
	if err != nil {
		fmt.Fprint(ready, err)
	}
	return err
}

// global are the options before the command.
type global struct {
	root           solo.Root
	log, logFormat string
}

// An exitError is a program's exit code that becomes ours.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// commands are all OCI commands.
var commands = map[string]func(global, []string) error{
	"create": create, "start": start, "state": state, "kill": kill, "delete": remove,
	"run": run, "list": list, "exec": exec, "ps": ps, "features": features,
	"pause": pause, "resume": resume, "update": update, "events": events,
	"checkpoint": refused, "restore": refused,
}

const usage = `Usage: minke-runtime [--root DIR] [--log FILE] [--log-format text|json] COMMAND

  create [--bundle DIR] [--pid-file FILE] [--console-socket PATH] [--preserve-fds N] [--no-pivot] ID
  start ID
  run    like create and start, waits, and deletes; [--detach] [--keep]
  exec   [--process FILE | --cwd DIR --env K=V --user UID[:GID] --tty] [--pid-file FILE]
         [--console-socket PATH] [--preserve-fds N] [--detach] ID [COMMAND...]
  kill   [--all] ID [SIGNAL]
  delete [--force] ID
  state ID
  list   [--quiet] [--format table|json]
  ps     [--format table|json] ID
  pause ID
  resume ID
  update [--resources FILE | --memory N --cpu-quota N ...] ID
  events --stats ID
  features
`

func oci(args []string) int {
	var g global
	var version, systemd, ignored bool
	fs := flag.NewFlagSet("minke-runtime", flag.ContinueOnError)
	fs.Usage = func() { fmt.Fprint(fs.Output(), usage) }
	fs.StringVar((*string)(&g.root), "root", "/run/minke-runtime", "")
	fs.StringVar(&g.log, "log", "", "")
	fs.StringVar(&g.logFormat, "log-format", "text", "")
	fs.BoolVar(&version, "version", false, "")
	fs.BoolVar(&systemd, "systemd-cgroup", false, "")
	fs.BoolVar(&version, "v", false, "")
	fs.BoolVar(&ignored, "debug", false, "")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	if version {
		fmt.Printf("minke-runtime version %s\nspec: %s\n", Version, specs.Version)
		return 0
	}
	if systemd {
		return report(errors.New("--systemd-cgroup: this runtime makes control groups itself; let its caller use cgroupfs (podman --cgroup-manager cgroupfs, SystemdCgroup = false for containerd)"), g)
	}
	command, ok := commands[fs.Arg(0)]
	if !ok {
		fmt.Fprint(os.Stderr, usage)
		return 2
	}
	return report(command(g, fs.Args()[1:]), g)
}

// Version is set by the linker.
var Version = "dev"

// report writes an error where callers of OCI runtimes look for it, and
// returns the exit code.
func report(err error, g global) int {
	if err == nil {
		return 0
	}
	if code, ok := errors.AsType[exitError](err); ok {
		return int(code)
	}
	fmt.Fprintln(os.Stderr, "minke-runtime:", err)
	if g.log != "" {
		if f, ferr := os.OpenFile(g.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); ferr == nil {
			defer f.Close()
			writeLog(f, g.logFormat, err)
		}
	}
	if p, ok := errors.AsType[*wire.ProgramError](err); ok {
		return p.Code
	}
	return 1
}

// warn tells what did not stop a command.
func (g global) warn(text string) { fmt.Fprintln(os.Stderr, "minke-runtime: warning:", text) }

func writeLog(w io.Writer, format string, err error) {
	now := time.Now().UTC().Format(time.RFC3339)
	if format == "json" {
		json.NewEncoder(w).Encode(map[string]string{"level": "error", "msg": err.Error(), "time": now})
		return
	}
	fmt.Fprintf(w, "time=%q level=error msg=%q\n", now, err.Error())
}
