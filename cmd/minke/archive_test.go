package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testdaemon"
)

func TestAnImageGoesToAnotherDeviceInAFile(t *testing.T) {
	d := testdaemon.Start(t)
	file := filepath.Join(t.TempDir(), "image.tar")
	minke(t, d, "save", "-o", file, "busybox")
	if _, err := d.ImageRemove(t.Context(), "busybox", client.ImageRemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if out := minke(t, d, "load", "-i", file); !strings.Contains(out, "Loaded image: busybox:latest") {
		t.Errorf("load says %q", out)
	}
	if out := minke(t, d, "run", "--rm", "--network", "none", "busybox", "echo", "it runs"); out != "it runs\n" {
		t.Errorf("run prints %q", out)
	}
}
