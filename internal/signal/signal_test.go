package signal

import (
	"syscall"
	"testing"

	"github.com/minke-os/minke/internal/errdef"
)

func TestParse(t *testing.T) {
	for name, want := range map[string]syscall.Signal{
		"KILL": 9, "sigkill": 9, "9": 9, "SIGRTMIN": 34, "SIGRTMIN+3": 37, "rtmax": 64, "RTMAX-14": 50, "64": 64,
	} {
		if got, err := Parse(name); got != want || err != nil {
			t.Errorf("Parse(%q) = %d, %v; want %d", name, got, err, want)
		}
	}
	for _, name := range []string{"", "0", "65", "-9", "NOSUCH", "SIGRTMIN3", "SIGRTMIN+31", "RTMAX+1", "RTMIN-1", "SIGSIGKILL"} {
		if got, err := Parse(name); !errdef.Is(err, errdef.Invalid) {
			t.Errorf("Parse(%q) = %d, %v; want it invalid", name, got, err)
		}
	}
}
