// Package command is the command line of minke-runtime.
package command

import (
	"fmt"
	"os"

	"github.com/minke-os/minke/runtime/internal/boot"
	"github.com/minke-os/minke/runtime/internal/monitor"
)

// Main runs the program and returns its exit code.
func Main(args []string) int {
	if err := run(args); err != nil {
		fmt.Fprintln(os.Stderr, "minke-runtime:", err)
		return 1
	}
	return 0
}

func run(args []string) error {
	applet := ""
	if len(args) > 0 {
		applet = args[0]
	}
	switch applet {
	case "init":
		boot.Main()
	case "join":
		boot.Join()
	case "monitor":
		return runMonitor(args[1:])
	}
	return fmt.Errorf("unknown command %q", applet)
}

// readyFD tells the starter that clients can connect: it is closed then.
const readyFD = 3

func runMonitor(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: minke-runtime monitor DIR")
	}
	ready := os.NewFile(readyFD, "ready")
	err := monitor.Run(args[0], func() { ready.Close() })
	if err != nil {
		fmt.Fprint(ready, err)
	}
	return err
}
