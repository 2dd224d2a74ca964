package conformance

import (
	"fmt"
	"slices"
	"testing"

	"github.com/minke-os/minke/internal/testbus"
)

// A check is one thing that holds.
type check struct {
	n    int
	name string
	f    func(*device)
}

// A group is checks that share a device.
type group struct {
	name   string
	setup  setup
	begin  func(*device) // before the first check, if set
	bus    bool          // logind and systemd are there
	checks []check
}

var groups = []group{
	reportGroup, // takes longest, for it waits
	httpGroup, lockGroup, compositionGroup, engineGroup, strategyGroup,
	pollGroup, knownGroup, localGroup, openGroup, hostGroup, preloadGroup,
}

func run(t *testing.T, docker bool) {
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			if !docker { // one dockerd at a time
				t.Parallel()
			}
			s := g.setup
			s.docker = docker
			var logind *testbus.Host
			if g.bus {
				var address string
				address, logind = testbus.Start(t)
				s.env = append(s.env, "DBUS_SYSTEM_BUS_ADDRESS="+address)
			}
			if g.name == hostGroup.name {
				s.state = t.TempDir()
			}
			d := start(t, s)
			defer d.empty()
			d.mntState, d.logind = s.state, logind
			if g.begin != nil {
				g.begin(d)
			}
			for _, c := range g.checks {
				t.Run(fmt.Sprintf("%02d-%s", c.n, c.name), func(t *testing.T) {
					d.t = t
					c.f(d)
				})
				d.t = t
			}
		})
	}
}

func TestMinke(t *testing.T) {
	t.Parallel()
	run(t, false)
}

func TestDocker(t *testing.T) {
	needDocker(t)
	run(t, true)
}

func TestEveryCheckIsThereOnce(t *testing.T) {
	var have, want []int
	for _, g := range groups {
		for _, c := range g.checks {
			have = append(have, c.n)
		}
	}
	for n := range 80 {
		want = append(want, n+1)
	}
	if slices.Sort(have); !slices.Equal(have, want) {
		t.Errorf("the checks are %v, want each number from 1 to 80 once", have)
	}
}
