// Command minke-runtime is the monitor of a device's containers, the first
// process of each of them, and an OCI runtime for the command line.
//
// The processes this program is are short or idle: none should read cgroup
// files to find out how many processors it may use.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0
package main

import (
	"os"

	"github.com/minke-os/minke/runtime/command"
)

func main() { os.Exit(command.Main(os.Args[1:])) }
