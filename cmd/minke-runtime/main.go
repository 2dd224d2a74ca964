// Command minke-runtime is the monitor of a device's containers, the first
// process of each of them, and an OCI runtime for the command line.
package main

import (
	"os"

	"github.com/minke-os/minke/runtime/command"
)

func main() { os.Exit(command.Main(os.Args[1:])) }
