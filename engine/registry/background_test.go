package registry

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestABackgroundPullFetchesOneLayerAfterTheOther(t *testing.T) {
	f := newFake(t)
	layers := [][]byte{tarOf(t, "a", 1000), tarOf(t, "b", 1000), tarOf(t, "c", 1000)}
	f.imageFor(t, "x", "1", linuxAMD, layers...)
	c := client(t, Options{})
	var l lines
	id, err := c.Pull(t.Context(), ref(t, f.host()+"/x:1"), PullOptions{Background: true, Progress: l.add})
	if err != nil {
		t.Fatal(err)
	}
	stored(t, c, id, layers...)
	var order []string
	for _, line := range l.all {
		if _, status, ok := strings.Cut(line, ": "); ok && (status == "Download complete" || status == "Pull complete") {
			order = append(order, status)
		}
	}
	one := []string{"Download complete", "Pull complete"}
	if want := slices.Concat(one, one, one); !slices.Equal(order, want) {
		t.Errorf("layers came as %q, want %q", order, want)
	}
}

func TestAnImageThatCannotFitIsNotFetched(t *testing.T) {
	f := newFake(t)
	f.imageFor(t, "x", "1", linuxAMD, tarOf(t, "a", 1000), tarOf(t, "b", 1000))
	var m map[string]any
	if err := json.Unmarshal(f.manifests["x/1"].raw, &m); err != nil {
		t.Fatal(err)
	}
	m["layers"].([]any)[1].(map[string]any)["size"] = 1 << 50
	f.putDocument(t, "x", "1", m)
	c := client(t, Options{})
	_, err := c.Pull(t.Context(), ref(t, f.host()+"/x:1"), PullOptions{})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "at least 1073741825 MB more are needed") {
		t.Errorf("Pull of more than the disk has = %v, want that there is no space", err)
	}
	if n := f.count("GET /v2/x/blobs/"); n != 1 {
		t.Errorf("%d blobs were fetched, want the configuration only", n)
	}
	empty(t, c)
}
