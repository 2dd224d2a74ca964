package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testdaemon"
)

// silent sends a request and never reads the answer.
func silent(t *testing.T, d *testdaemon.Daemon, request string) {
	t.Helper()
	c, err := net.Dial("unix", d.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: minke\r\n\r\n", request); err != nil {
		t.Fatal(err)
	}
	c.Read(make([]byte, 12)) // it has begun
}

func TestClientsThatStopReadingHoldNobodyUp(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t)
	host := logging("json-file", "max-size=1m")
	id := d.RunDetached(testdaemon.Spec{Name: "chatty", Config: sh("head -c 20000000 /dev/urandom > /big; yes chatter"), Host: host})
	d.WaitFor(id, "to have its big file", func(container.InspectResponse) bool {
		out, code := d.Exec(id, "stat", "-c", "%s", "/big")
		return code == 0 && strings.TrimSpace(out) == "20000000"
	})
	silent(t, d, "GET /events?since=1")
	silent(t, d, "POST /containers/chatty/attach?stream=1&stdout=1&stderr=1")
	silent(t, d, "GET /containers/chatty/logs?stdout=1&follow=1")
	silent(t, d, "GET /containers/chatty/stats")
	silent(t, d, "GET /containers/chatty/export")
	silent(t, d, "GET /containers/chatty/archive?path=/big")
	silent(t, d, "GET /images/busybox/get")

	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for range 40 {
		if _, err := d.ContainerRename(ctx, "chatty", client.ContainerRenameOptions{NewName: "chatty2"}); err != nil {
			t.Fatal(err)
		}
		if _, err := d.ContainerRename(ctx, "chatty2", client.ContainerRenameOptions{NewName: "chatty"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.ContainerList(ctx, client.ContainerListOptions{All: true, Size: true}); err != nil {
		t.Errorf("list: %v", err)
	}
	if out, code := d.Exec(id, "echo", "alive"); code != 0 || out != "alive\n" {
		t.Errorf("exec = %q, %d", out, code)
	}
	now, began := 0, time.Now()
	if _, err := d.ContainerStop(ctx, id, client.ContainerStopOptions{Timeout: &now}); err != nil {
		t.Errorf("stop: %v", err)
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("stop took %v for a client that does not read its output", took)
	}
	if _, err := d.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true}); err != nil {
		t.Errorf("remove: %v", err)
	}
	if out := d.Sh("echo next", container.HostConfig{}); out != "next\n" {
		t.Errorf("the next container printed %q", out)
	}
}

// tarOf is an archive of one file, or of a link if to is set.
func tarOf(t *testing.T, name, to, content string) io.Reader {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	h := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg}
	if to != "" {
		h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, to, 0
	}
	if err := w.WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, content)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}

func TestCopiesNeverLeaveTheContainer(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t)
	outside := t.TempDir() // on the host; the container has no such directory
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	// It swaps a directory for links that lead out, as fast as it can.
	up := strings.Repeat("../", 20) + strings.TrimPrefix(outside, "/")
	id := d.RunDetached(testdaemon.Spec{Config: sh(fmt.Sprintf(
		"mkdir -p /swap /d; ln -s %s /abs; ln -s %s /rel; touch /ready; while :; do rm -rf /swap; mkdir /swap; rm -rf /swap; ln -s %s /swap; rm -f /swap; ln -s %s /swap; done",
		outside, up, outside, up))})
	d.WaitFor(id, "to be ready", func(container.InspectResponse) bool { _, code := d.Exec(id, "test", "-e", "/ready"); return code == 0 })
	put := func(dir string, archive io.Reader) {
		// It may fail, but not outside.
		d.CopyToContainer(t.Context(), id, client.CopyToContainerOptions{DestinationPath: dir, Content: archive})
	}
	get := func(path string) {
		t.Helper()
		r, err := d.CopyFromContainer(t.Context(), id, client.CopyFromContainerOptions{SourcePath: path})
		if err != nil {
			return
		}
		defer r.Content.Close()
		data, _ := io.ReadAll(r.Content)
		if bytes.Contains(data, []byte("of the host")) {
			t.Fatalf("cp from %s gives a file of the host", path)
		}
	}
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		put("/swap", tarOf(t, "planted", "", "x"))
		put("/swap/", tarOf(t, "../../../../../../.."+outside+"/planted", "", "x"))
		put("/", tarOf(t, "swap/planted", "", "x"))
		get("/swap/secret")
		get("/swap/.")
	}
	for _, dir := range []string{"/abs", "/rel", "/d/../rel", "/proc/1/root/abs"} {
		put(dir, tarOf(t, "planted", "", "x"))
		get(dir + "/secret")
	}
	put("/d", tarOf(t, outside+"/planted", "", "x"))
	put("/d", tarOf(t, "link", outside, ""))
	put("/d", tarOf(t, "link/planted", "", "x"))
	now := 0
	if _, err := d.ContainerStop(t.Context(), id, client.ContainerStopOptions{Timeout: &now}); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/abs", "/rel", "/d/link"} { // the same of a container that does not run
		put(dir, tarOf(t, "planted", "", "x"))
		get(dir + "/secret")
	}
	left, err := os.ReadDir(outside)
	if err != nil || len(left) != 1 {
		t.Errorf("files of the host = %v, %v; want only the secret", left, err)
	}
}

func TestCopiesAreTheUsersIfAskedFor(t *testing.T) {
	d := testdaemon.Start(t)
	c := sh("sleep 600")
	c.User = "12:34"
	id := d.RunDetached(testdaemon.Spec{Config: c})
	for _, tt := range []struct {
		asUser bool
		want   string
	}{{true, "12:34"}, {false, "0:0"}} {
		if _, err := d.CopyToContainer(t.Context(), id, client.CopyToContainerOptions{DestinationPath: "/tmp", Content: tarOf(t, "f", "", "x"), CopyUIDGID: tt.asUser}); err != nil {
			t.Fatal(err)
		}
		if out, _ := d.Exec(id, "stat", "-c", "%u:%g", "/tmp/f"); strings.TrimSpace(out) != tt.want {
			t.Errorf("copyUIDGID=%v: owner %q, want %s", tt.asUser, out, tt.want)
		}
	}
}

func TestDetachingFromAnExecutionLeavesItRunning(t *testing.T) {
	d := testdaemon.Start(t)
	id := d.RunDetached(testdaemon.Spec{Config: sh("sleep 600")})
	stream := d.Events(t.Context(), client.EventsListOptions{Filters: client.Filters{}.Add("event", "exec_detach")})
	x, err := d.ExecCreate(t.Context(), id, client.ExecCreateOptions{Cmd: []string{"sh", "-c", "echo ready; sleep 500"}, AttachStdin: true, AttachStdout: true, TTY: true, DetachKeys: "x,y"})
	if err != nil {
		t.Fatal(err)
	}
	a, err := d.ExecAttach(t.Context(), x.ID, client.ExecAttachOptions{TTY: true})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	a.Conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := a.Reader.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	a.Conn.Write([]byte("xy"))
	if _, err := io.ReadAll(a.Reader); err != nil {
		t.Fatalf("the stream goes on after the detach keys: %v", err)
	}
	if got, err := d.ExecInspect(t.Context(), x.ID, client.ExecInspectOptions{}); err != nil || !got.Running {
		t.Errorf("the execution is %+v, %v; want it to run on", got, err)
	}
	select {
	case m := <-stream.Messages:
		if m.Actor.Attributes["execID"] != x.ID {
			t.Errorf("event = %+v, want the execution's ID in it", m)
		}
	case err := <-stream.Err:
		t.Fatal(err)
	case <-time.After(20 * time.Second):
		t.Error("no event exec_detach")
	}
}
