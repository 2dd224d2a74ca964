package supervisor_test

import (
	"strings"
	"testing"
)

// Images that were built here are named by their IDs.
func TestPeopleReadShortIDs(t *testing.T) {
	id := "sha256:" + strings.Repeat("0123456789abcdef", 4)
	d := start(t, newFake(id), t.TempDir(), t.TempDir())
	d.apply(target(testImage, id))
	const want = `"Started service 'web sha256:0123456789ab'"`
	if _, text := d.call("GET", "/v2/local/logs?follow=false&tail=50", ""); !strings.Contains(text, want) {
		t.Errorf("the log is\n%s\nwant %s in it", text, want)
	}
}
