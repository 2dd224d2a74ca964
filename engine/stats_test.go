package engine

import (
	"reflect"
	"testing"

	"github.com/moby/moby/api/types/container"
)

func TestParseNetDev(t *testing.T) {
	const dev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:      90       1    0    0    0     0          0         0       90       1    0    0    0     0       0          0
  eth0:    1160      12    1    2    0     0          0         0      500       5    3    4    0     0       0          0
`
	got := parseNetDev([]byte(dev))
	want := map[string]container.NetworkStats{
		"eth0": {RxBytes: 1160, RxPackets: 12, RxErrors: 1, RxDropped: 2, TxBytes: 500, TxPackets: 5, TxErrors: 3, TxDropped: 4},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("parseNetDev = %+v, want %+v", got, want)
	}
}
