package firewall

import (
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/internal/thread"
)

// What is right is left alone: Watch tells of what Apply removes, and the two
// would run for ever.
func TestApplyChangesOnlyWhatIsWrong(t *testing.T) {
	testenv.NeedRoot(t)
	err := thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
		if err := Apply(Rules{Ports: []uint16{48484}}); err != nil {
			return err
		}
		mark := c.AddChain(&nftables.Chain{Name: "mark", Table: table}) // goes with the table
		if err := c.Flush(); err != nil {
			return err
		}
		for _, tt := range []struct {
			rules Rules
			kept  bool
		}{
			{Rules{Ports: []uint16{48484}}, true},
			{Rules{Ports: []uint16{48485}}, true}, // another one's table
			{Rules{Ports: []uint16{48484}, On: true}, false},
		} {
			if err := Apply(tt.rules); err != nil {
				return err
			}
			if _, err := c.ListChain(table, mark.Name); (err == nil) != tt.kept {
				t.Errorf("for %+v the table was kept: %v (%v), want %v", tt.rules, err == nil, err, tt.kept)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
