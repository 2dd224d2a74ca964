package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testdaemon"
	"github.com/minke-os/minke/internal/testenv"
)

// fuse does something once so many bytes have come through.
type fuse struct {
	left atomic.Int64 // negative when it has blown
	blow func()
}

func (f *fuse) Write(p []byte) (int, error) {
	if n := f.left.Add(-int64(len(p))); n <= 0 && n+int64(len(p)) > 0 {
		f.blow()
	}
	return len(p), nil
}

// relay passes connections on to another address of the daemon's host, and what
// comes back through f, too.
func relay(t *testing.T, d *testdaemon.Daemon, to string, f *fuse) (addr string) {
	t.Helper()
	var l net.Listener
	err := d.InNetNS(func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := d.Dial(t.Context(), "tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			go func() { io.Copy(out, in); out.Close() }()
			go func() { io.Copy(in, io.TeeReader(out, f)); in.Close() }()
		}
	}()
	return l.Addr().String()
}

// isWhole looks at all that the store has.
func isWhole(t *testing.T, d *testdaemon.Daemon) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", d.Socket)
	}}}
	resp, err := c.Post("http://minke/minke/store/check", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var report struct{ Problems []string }
	if err := json.NewDecoder(resp.Body).Decode(&report); err != nil || resp.StatusCode != http.StatusOK || len(report.Problems) > 0 {
		t.Errorf("store check: %s, %v, problems %q", resp.Status, err, report.Problems)
	}
	if left, _ := filepath.Glob(filepath.Join(d.Dir, "data/staging/*")); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
}

// minked dies when a part of an image has come. Then the store is whole, what
// was there works, and the same image can be had.
func TestDeathInALoadOrAPullLosesNothing(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "docker-registry")
	d := testdaemon.Start(t)
	const layer = "RUN mkdir -p /data && for i in 1 2 3 4 5 6 7 8; do head -c 100000 /dev/urandom > /data/%d-$i; done\n"
	dockerfile := "FROM busybox\n"
	for i := range 3 {
		dockerfile += fmt.Sprintf(layer, i)
	}
	if out, err := build(t.Context(), d.Client, dockerfile, nil); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	saved, err := d.ImageSave(t.Context(), []string{"built"})
	if err != nil {
		t.Fatal(err)
	}
	archive, err := io.ReadAll(saved)
	saved.Close()
	if err != nil {
		t.Fatal(err)
	}
	archive = append(archive, make([]byte, 100<<10)...) // padding, as tar has it

	load := func(f *fuse) error {
		res, err := d.ImageLoad(t.Context(), io.TeeReader(bytes.NewReader(archive), f))
		if err != nil {
			return err
		}
		defer res.Close()
		out, err := io.ReadAll(res)
		if err == nil && !strings.Contains(string(out), "Loaded image: built:latest") {
			err = fmt.Errorf("load said %s", out)
		}
		return err
	}
	var line fuse
	through := relay(t, d, startRegistry(t, d), &line)
	remote := through + "/lib/built:1"
	if _, err := d.ImageTag(t.Context(), client.ImageTagOptions{Source: "built", Target: remote}); err != nil {
		t.Fatal(err)
	}
	pushed, err := d.ImagePush(t.Context(), remote, client.ImagePushOptions{RegistryAuth: "e30="})
	if err != nil {
		t.Fatal(err)
	}
	if err := pushed.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	pull := func(f *fuse) error {
		line.blow = f.blow
		line.left.Store(f.left.Load())
		r, err := d.ImagePull(t.Context(), remote, client.ImagePullOptions{})
		if err != nil {
			return err
		}
		return r.Wait(t.Context())
	}

	for _, way := range []struct {
		name, image string
		size        int // of what comes; the base is here
		get         func(*fuse) error
	}{{"load", "built", len(archive), load}, {"pull", remote, 2400000, pull}} {
		for _, part := range []int{3, 30, 50, 70, 97} {
			t.Run(fmt.Sprintf("%s-%d-per-cent", way.name, part), func(t *testing.T) {
				for _, name := range []string{"built", remote} {
					d.ImageRemove(t.Context(), name, client.ImageRemoveOptions{PruneChildren: true})
				}
				pid := d.Pid()
				f := &fuse{blow: func() { syscall.Kill(pid, syscall.SIGKILL) }}
				f.left.Store(int64(way.size * part / 100))
				if err := way.get(f); err == nil {
					t.Fatal("the daemon outlived it")
				}
				testdaemon.WaitDead(t, pid)
				d.Kill() // collects it
				d.Up()
				isWhole(t, d)
				if _, err := d.ImageInspect(t.Context(), way.image); err == nil {
					t.Error("an image is there of which a part had come")
				}
				f.left.Store(1 << 40)
				if err := way.get(f); err != nil {
					t.Fatalf("once more: %v", err)
				}
				isWhole(t, d)
				c := sh("cat /data/* | wc -c")
				c.Image = way.image
				if out, _, code := d.Run(testdaemon.Spec{Config: c}); code != 0 || out != "2400000\n" {
					t.Errorf("it has %q bytes, %d", out, code)
				}
			})
		}
	}
	if log := d.Log(); strings.Contains(log, "panic") {
		t.Errorf("minked says %s", log)
	}
}
