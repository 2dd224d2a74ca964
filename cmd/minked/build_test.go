package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testdaemon"
)

// build runs a build of one Dockerfile and a file, and gives what it printed.
func build(ctx context.Context, c *client.Client, dockerfile string, seen func(string)) (string, error) {
	var body bytes.Buffer
	w := tar.NewWriter(&body)
	for name, text := range map[string]string{"Dockerfile": dockerfile, "dir/file": "content\n"} {
		w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))})
		io.WriteString(w, text)
	}
	w.Close()
	res, err := c.ImageBuild(ctx, &body, client.ImageBuildOptions{Tags: []string{"built"}, Dockerfile: "Dockerfile", Remove: true})
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	var out strings.Builder
	for dec := json.NewDecoder(res.Body); ; {
		var m jsonstream.Message
		if err := dec.Decode(&m); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return out.String(), err
		}
		if m.Error != nil {
			return out.String(), errors.New(m.Error.Message)
		}
		out.WriteString(m.Stream)
		if seen != nil {
			seen(m.Stream)
		}
	}
}

func withSecret(t *testing.T, d *testdaemon.Daemon, secret string) *client.Client {
	t.Helper()
	data, err := json.Marshal(map[string][]byte{"token": []byte(secret)})
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(client.WithHost("unix://"+d.Socket), client.WithHTTPHeaders(map[string]string{"X-Minke-Build-Secrets": base64.URLEncoding.EncodeToString(data)}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestBuildMountsAreThereForOneCommandOnly(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t)
	const secret = "Ieb4ohth"
	var inside string
	out, err := build(t.Context(), withSecret(t, d, secret), `FROM busybox AS other
RUN echo other > /made
FROM busybox
RUN --mount=type=cache,target=/made/cache --mount=type=tmpfs,target=/scratch --mount=source=dir/file,target=/etc/new/file --mount=source=dir,target=/dir,rw \
    --mount=from=other,target=/other --mount=type=secret,id=token --mount=type=secret,id=token,env=TOKEN,target=/t,mode=444,uid=5 \
    echo 1 > /made/cache/n && cat /etc/new/file && echo x > /dir/more && ls /dir && cat /other/made && touch /other/x 2>&1 | grep -o Read-only ; \
    test "$(cat /run/secrets/token)" = "$TOKEN" && echo same; stat -c '%a %u' /t; echo waiting; ls / > /root.txt
RUN --mount=type=cache,target=/made/cache cat /made/cache/n
RUN find / -xdev > /all.txt
`, func(line string) {
		if strings.Contains(line, "waiting") {
			inside = traces(t, filepath.Join(d.Dir, "data"), secret)
		}
	})
	if err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	for _, want := range []string{"content\nfile\nmore\nother\nRead-only\nsame\n444 5\n", "\n1\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
	all, _, _ := d.Run(testdaemon.Spec{Config: container.Config{Image: "built", Cmd: []string{"cat", "/all.txt"}}})
	for _, name := range []string{"/made", "/scratch", "/etc/new", "/dir", "/other", "/run/secrets", "/t"} {
		if strings.Contains("\n"+all, "\n"+name+"\n") {
			t.Errorf("the image has %s", name)
		}
	}
	if left := inside + traces(t, d.Dir, secret); left != "" {
		t.Errorf("the secret was or is in %s", left)
	}
	du, err := d.DiskUsage(t.Context(), client.DiskUsageOptions{BuildCache: true, Verbose: true})
	if err != nil || len(du.BuildCache.Items) != 1 || du.BuildCache.Items[0].Description != "cached mount /made/cache" || du.BuildCache.Items[0].UsageCount != 2 {
		t.Errorf("disk usage of the build cache = %+v, %v", du.BuildCache, err)
	}
	pruned, err := d.BuildCachePrune(t.Context(), client.BuildCachePruneOptions{})
	if err != nil || len(pruned.Report.CachesDeleted) != 1 || pruned.Report.SpaceReclaimed == 0 {
		t.Errorf("prune = %+v, %v", pruned, err)
	}
}

// traces names the files below dir that have text in them.
func traces(t *testing.T, dir, text string) (found string) {
	t.Helper()
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // it may just be going
		}
		if data, err := os.ReadFile(path); err == nil && bytes.Contains(data, []byte(text)) {
			found += path + "\n"
		}
		return nil
	})
	return found
}

func TestCancelledBuildEndsItsCommand(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t)
	var before map[string]int
	for n := range 4 {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		out, err := build(ctx, d.Client, "FROM busybox\nRUN --mount=type=cache,target=/c --mount=target=/in echo started; sleep 600\n", func(line string) {
			if line == "started\n" {
				cancel()
			}
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("build = %v\n%s", err, out)
		}
		if n == 0 { // the first one makes the bridge and connections
			before = count(t, d)
		}
	}
	waitGone(t, d, before)
}

// TestDeathInABuildLeavesNothing ends minked where a RUN instruction may be.
func TestDeathInABuildLeavesNothing(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t)
	const dockerfile = `FROM busybox
RUN --mount=type=cache,target=/c --mount=type=secret,id=token --mount=target=/in,rw echo line >> /c/log; echo > /in/x
COPY dir/file /
RUN --mount=type=cache,target=/c wc -l < /c/log
`
	c := withSecret(t, d, "x")
	for _, point := range []string{"create-content", "build-mounts", "start-prepared", "start-network", "start-process", "start-record", "exit-record", "build-commit", "remove-record"} {
		t.Run(point, func(t *testing.T) {
			before := count(t, d)
			before["descriptors"], before["monitor's"] = 1<<20, before["monitor's"]+20
			before["mounts"] = 1 << 20
			d.Stop()
			d.Prepare = func(c *exec.Cmd) { c.Env = append(os.Environ(), "MINKE_DIE_AT="+point) }
			d.Up()
			if out, err := build(t.Context(), c, dockerfile, nil); err == nil {
				t.Fatalf("the daemon outlived %s:\n%s", point, out)
			}
			testdaemon.WaitDead(t, d.Pid())
			d.Kill()
			d.Prepare = nil
			d.Up()
			waitGone(t, d, before)
			for _, pattern := range []string{"data/staging/*", "data/buildcache/new-*", "run/secrets/*"} {
				if left, _ := filepath.Glob(filepath.Join(d.Dir, pattern)); len(left) > 0 {
					t.Errorf("%v are left", left)
				}
			}
			if out, err := build(t.Context(), c, dockerfile, nil); err != nil {
				t.Errorf("build after the restart: %v\n%s", err, out)
			}
			if _, err := d.ImageRemove(t.Context(), "built", client.ImageRemoveOptions{PruneChildren: true}); err != nil {
				t.Errorf("remove the image: %v", err)
			}
		})
	}
}

// The engine makes mount points where an image has none, such as /proc. They
// are no change that the command made.
func TestCommandThatChangesNothingMakesNoLayer(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t)
	layers := func(name string) int {
		img, err := d.ImageInspect(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return len(img.RootFS.Layers)
	}
	if _, err := build(t.Context(), d.Client, "FROM scratch\nCOPY --from=busybox /bin /bin\nRUN true\n", nil); err != nil {
		t.Fatal(err)
	}
	if n := layers("built"); n != 1 {
		t.Errorf("COPY and a RUN that changes nothing make %d layers, want 1", n)
	}
	if _, err := build(t.Context(), d.Client, "FROM scratch\nCOPY --from=busybox /bin /bin\nRUN chmod 700 /dev || mkdir -p /proc/x /dev/x; echo 1 > /file\n", nil); err != nil {
		t.Fatal(err)
	}
	if n := layers("built"); n != 2 {
		t.Errorf("COPY and a RUN that writes a file make %d layers, want 2", n)
	}
}
