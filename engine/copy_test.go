package engine

import (
	"testing"

	"github.com/minke-os/minke/engine/store"
)

func TestWhatTheEngineMountsIsNoChange(t *testing.T) {
	own := map[string]bool{"/etc/hosts": true, "/etc/hostname": true, "/sbin/docker-init": true}
	change := func(k store.ChangeKind, p string) store.Change { return store.Change{Path: p, Kind: k} }
	mine := []store.Change{
		change(store.Modified, "/etc"), change(store.Added, "/etc/hosts"), change(store.Added, "/etc/hostname"),
		change(store.Added, "/sbin"), change(store.Added, "/sbin/docker-init"),
	}
	if got := withoutOwn(mine, own); len(got) != 0 {
		t.Errorf("shown: %v", got)
	}
	theirs := []store.Change{
		change(store.Modified, "/etc"), change(store.Added, "/etc/hosts"), change(store.Modified, "/etc/passwd"), change(store.Deleted, "/sbin"),
	}
	got := withoutOwn(theirs, own)
	if len(got) != 3 || got[0].Path != "/etc" || got[1].Path != "/etc/passwd" || got[2].Path != "/sbin" {
		t.Errorf("shown: %v; want /etc, /etc/passwd and /sbin", got)
	}
}
