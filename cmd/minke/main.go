// Command minke runs container applications on devices.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/minke-os/minke/cli"
)

// version is set when the program is built for release.
var version = "0.1.0-dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Main(ctx, os.Args, version)
	stop()
	os.Exit(code)
}
