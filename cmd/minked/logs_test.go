package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testdaemon"
)

// logging is a host configuration with a log driver; opts are k=v.
func logging(driver string, opts ...string) container.HostConfig {
	c := container.LogConfig{Type: driver, Config: map[string]string{}}
	for _, o := range opts {
		k, v, _ := strings.Cut(o, "=")
		c.Config[k] = v
	}
	return container.HostConfig{LogConfig: c}
}

func readLogs(t *testing.T, d *testdaemon.Daemon, id string, o client.ContainerLogsOptions) string {
	t.Helper()
	o.ShowStdout, o.ShowStderr = true, true
	r, err := d.ContainerLogs(t.Context(), id, o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var out bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &out, r); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// logSocket is a service's socket; its datagrams come by the channel.
func logSocket(t *testing.T, path string) <-chan string {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 100)
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := c.Read(buf)
			if err != nil {
				close(got)
				return
			}
			got <- string(buf[:n])
		}
	}()
	t.Cleanup(func() {
		c.Close()
		os.Remove(path)
	})
	return got
}

func TestLogDrivers(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t)
	run := func(t *testing.T, script string, host container.HostConfig) string {
		t.Helper()
		c := sh(script)
		c.Labels = map[string]string{"app": "web & shop"}
		id := d.RunDetached(testdaemon.Spec{Config: c, Host: host})
		if code := d.WaitExit(id); code != 0 {
			t.Fatalf("exit code %d", code)
		}
		return id
	}
	t.Run("json-file-shows-attributes-only-with-details", func(t *testing.T) {
		id := run(t, "echo hello", logging("json-file", "labels=app", "tag={{.ImageName}}"))
		if got := readLogs(t, d, id, client.ContainerLogsOptions{}); got != "hello\n" {
			t.Errorf("logs = %q", got)
		}
		want := "app=web+%26+shop,tag=busybox%3Alatest hello\n"
		if got := readLogs(t, d, id, client.ContainerLogsOptions{Details: true}); got != want {
			t.Errorf("logs --details = %q, want %q", got, want)
		}
	})
	t.Run("local-is-compressed-and-read-whole", func(t *testing.T) {
		// Three files' worth, each written slowly enough to be worth compressing.
		script := "for i in 1 2 3; do seq ${i}000 ${i}999; sleep 2.1; done"
		id := run(t, script, logging("local", "max-size=60k", "max-file=4"))
		packed, _ := filepath.Glob(filepath.Join(d.Dir, "data/containers", id, "local-logs/*.gz"))
		if len(packed) == 0 {
			t.Error("no file is compressed")
		}
		if got := readLogs(t, d, id, client.ContainerLogsOptions{}); strings.Count(got, "\n") != 3000 || !strings.HasPrefix(got, "1000\n") {
			t.Errorf("%d lines, the first %.10q; want 3000 from 1000", strings.Count(got, "\n"), got)
		}
		if got := readLogs(t, d, id, client.ContainerLogsOptions{Tail: "2500"}); strings.Count(got, "\n") != 2500 || !strings.HasPrefix(got, "1500\n") {
			t.Errorf("tail: %d lines, the first %.10q; want 2500 from 1500", strings.Count(got, "\n"), got)
		}
		if path := d.Inspect(id).LogPath; path != "" {
			t.Errorf("LogPath = %q, want none: the format is no collector's business", path)
		}
	})
	t.Run("non-blocking-loses-nothing-of-a-quiet-container", func(t *testing.T) {
		id := run(t, "seq 1000; echo -n end", logging("json-file", "mode=non-blocking"))
		if got := readLogs(t, d, id, client.ContainerLogsOptions{}); strings.Count(got, "\n") != 1000 || !strings.HasSuffix(got, "\nend") {
			t.Errorf("%d lines, want 1000 and an unfinished one", strings.Count(got, "\n"))
		}
	})
	t.Run("none-cannot-be-read", func(t *testing.T) {
		id := run(t, "echo hello", logging("none"))
		_, err := d.ContainerLogs(t.Context(), id, client.ContainerLogsOptions{ShowStdout: true})
		if err == nil || !strings.Contains(err.Error(), "configured logging driver does not support reading") {
			t.Errorf("logs = %v, want a refusal", err)
		}
	})
	t.Run("syslog-gets-lines-and-a-copy-is-read-back", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "log")
		got := logSocket(t, path)
		id := run(t, "echo hello; echo bad >&2", logging("syslog", "syslog-address=unixgram://"+path, "tag={{.Name}}", "syslog-facility=local0"))
		all := <-got + <-got
		name := strings.TrimPrefix(d.Inspect(id).Name, "/")
		if !strings.Contains(all, "<134>") || !strings.Contains(all, "<131>") || !strings.Contains(all, " "+name+"[") || !strings.Contains(all, ": hello") {
			t.Errorf("syslog got %q", all)
		}
		if got := readLogs(t, d, id, client.ContainerLogsOptions{}); !strings.Contains(got, "hello\n") {
			t.Errorf("logs = %q, want the copy", got)
		}
	})
	t.Run("journald-gets-who-it-was", func(t *testing.T) {
		const path = "/run/systemd/journal/socket"
		if _, err := os.Stat(path); err == nil {
			t.Skip("a real journald runs here")
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		got := logSocket(t, path)
		id := run(t, "echo hello", logging("journald", "labels=app"))
		entry := <-got
		for _, want := range []string{"CONTAINER_ID=" + id[:12], "CONTAINER_ID_FULL=" + id, "APP=web & shop", "PRIORITY=6", "hello\n", "IMAGE_NAME=" + testdaemon.Image} {
			if !strings.Contains(entry, want) {
				t.Errorf("journald got %q, want %s in it", entry, want)
			}
		}
	})
	t.Run("bad-options-are-refused-at-create", func(t *testing.T) {
		_, err := d.ContainerCreate(t.Context(), client.ContainerCreateOptions{
			Config: &container.Config{Image: testdaemon.Image}, HostConfig: &container.HostConfig{LogConfig: logging("json-file", "sise=1").LogConfig},
		})
		if err == nil || !strings.Contains(err.Error(), "unknown log opt 'sise' for json-file log driver") {
			t.Errorf("create = %v", err)
		}
	})
}

func TestAFloodOfLogsStaysWithinItsLimitAndHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t)
	id := d.RunDetached(testdaemon.Spec{
		Config: sh("yes 0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789 | head -c 100000000; echo done; sleep 600"),
		Host:   logging("json-file", "max-size=2m", "max-file=3"),
	})
	// A client that follows and never reads.
	r, err := d.ContainerLogs(t.Context(), id, client.ContainerLogsOptions{ShowStdout: true, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	io.ReadFull(r, make([]byte, 1))
	start, slowest := time.Now(), time.Duration(0)
	const most = 3 * (2<<20 + 64<<10)                                                  // a file is rotated after the write that reaches the limit
	for deadline := start.Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) { // what another process does gives no signal
		before := time.Now()
		if _, err := d.Ping(t.Context(), client.PingOptions{}); err != nil {
			t.Fatal(err)
		}
		slowest = max(slowest, time.Since(before))
		var size int64
		files, _ := filepath.Glob(filepath.Join(d.Dir, "data/containers", id, "*-json.log*"))
		for _, f := range files {
			if fi, err := os.Stat(f); err == nil {
				size += fi.Size()
			}
		}
		if size > most {
			t.Fatalf("the log takes %d bytes, want at most %d", size, most)
		}
		if strings.Contains(readLogs(t, d, id, client.ContainerLogsOptions{Tail: "1"}), "done") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the container has not written 100 MB in a minute")
		}
	}
	t.Logf("100 MB in %v, slowest ping %v", time.Since(start), slowest)
	if slowest > 2*time.Second {
		t.Errorf("minked took %v to answer a ping under a flood of logs", slowest)
	}
	if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.Monitor())); err != nil || len(fds) > 100 {
		t.Errorf("the monitor has %d files open, %v", len(fds), err)
	}
}
