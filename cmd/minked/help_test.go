package main

import (
	"context"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/nftables"
	"go.etcd.io/bbolt"

	"github.com/minke-os/minke/internal/testdaemon"
)

func copyAll(w io.Writer, r io.Reader) (int64, error) { return io.Copy(w, r) }

func dialUnix(path string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
}

// minked runs the program to its end.
func minked(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), filepath.Join(testdaemon.Build(t), "minked"), args...).CombinedOutput()
	return string(out), err
}

// damage overwrites a container's record.
func damage(t *testing.T, path, id string) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bbolt.Tx) error { return tx.Bucket([]byte("containers.1")).Put([]byte(id), []byte("{broken")) })
	if err != nil {
		t.Fatal(err)
	}
}

// elements counts published ports in the daemon's packet rules.
func elements(t *testing.T, d *testdaemon.Daemon) (n int) {
	t.Helper()
	err := d.InNetNS(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := c.ListTables()
		if err != nil {
			return err
		}
		for _, table := range tables {
			if !strings.HasPrefix(table.Name, "minke_") {
				continue
			}
			sets, err := c.GetSets(table)
			if err != nil {
				return err
			}
			for _, s := range sets {
				e, err := c.GetSetElements(s)
				if err != nil {
					return err
				}
				n += len(e)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
