package network

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// fakeServers answer with a response code; -1 is no answer.
func fakeServers(asked *[]string, servers map[string]int) *upstream {
	u := &upstream{bad: map[netip.Addr]time.Time{}, outside: func() bool { return true }}
	u.dial = func(_ context.Context, _, addr string) (net.Conn, error) {
		host, _, _ := net.SplitHostPort(addr)
		*asked = append(*asked, host)
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			buf := make([]byte, 512)
			n, err := theirs.Read(buf)
			if code := servers[host]; err == nil && code >= 0 {
				buf[2] |= 0x80
				buf[3] = byte(code)
				theirs.Write(buf[:n])
			} else {
				theirs.Read(buf) // until the other end is closed
			}
		}()
		return ours, nil
	}
	return u
}

func TestUpstreamAsksTheNextServer(t *testing.T) {
	const one, two, three = "192.0.2.1", "192.0.2.2", "192.0.2.3"
	good, silent, refuses, unknown := 0, -1, int(dnsmessage.RCodeRefused), int(dnsmessage.RCodeNameError)
	for _, tt := range []struct {
		name    string
		servers map[string]int
		want    int // response code; -1 for none
		took    time.Duration
		then    []string // asked for the next query
	}{
		{"first-answers", map[string]int{one: good, two: good, three: good}, good, 0, []string{one}},
		{"no-such-name-is-an-answer", map[string]int{one: unknown, two: good, three: good}, unknown, 0, []string{one}},
		{"first-refuses", map[string]int{one: refuses, two: good, three: good}, good, 0, []string{one, two}},
		{"first-is-silent-and-asked-last-from-then-on", map[string]int{one: silent, two: good, three: good}, good, nextAfter, []string{two}},
		{"two-are-silent", map[string]int{one: silent, two: silent, three: good}, good, 2 * nextAfter, []string{three}},
		{"refusal-is-better-than-nothing", map[string]int{one: refuses, two: silent, three: silent}, refuses, forwardLimit, []string{one, two, three}},
		{"all-are-silent", map[string]int{one: silent, two: silent, three: silent}, silent, forwardLimit, []string{one, two, three}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked []string
				u := fakeServers(&asked, tt.servers)
				for _, s := range []string{one, two, three} {
					u.own = append(u.own, netip.MustParseAddr(s))
				}
				start := time.Now()
				reply, got := u.ask("udp", query(t, "example.com.")), -1
				if len(reply) > 3 {
					got = int(reply[3] & 15)
				}
				if took := time.Since(start); got != tt.want || took != tt.took {
					t.Errorf("answer with code %d after %v, want %d after %v", got, took, tt.want, tt.took)
				}
				synctest.Wait()
				asked = nil
				u.ask("udp", query(t, "example.com."))
				synctest.Wait()
				if len(asked) != len(tt.then) || asked[0] != tt.then[0] {
					t.Errorf("the next query asks %v, want %v", asked, tt.then)
				}
			})
		})
	}
}
