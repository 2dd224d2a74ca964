package network

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

func TestResolvFileSurvivesReadingAndWriting(t *testing.T) {
	const in = "# comment\ndomain old.example\nnameserver 1.1.1.1\nnameserver bad\n  nameserver fe80::1%eth0\nsearch a.example b.example\noptions ndots:2 edns0\noptions rotate\n"
	const want = "nameserver 1.1.1.1\nnameserver fe80::1%eth0\nsearch a.example b.example\noptions ndots:2 edns0 rotate\n"
	if got := string(parseResolv([]byte(in)).format()); got != want {
		t.Errorf("parsed and written: %q, want %q", got, want)
	}
}

func FuzzParseResolv(f *testing.F) {
	f.Add([]byte("nameserver 1.1.1.1\nsearch a\noptions b\n"))
	f.Add([]byte("nameserver\nsearch\x00 a"))
	f.Fuzz(func(t *testing.T, data []byte) {
		once := string(parseResolv(data).format())
		if twice := string(parseResolv([]byte(once)).format()); twice != once {
			t.Errorf("%q is not stable: read again it is %q", once, twice)
		}
	})
}

func TestReverseAddr(t *testing.T) {
	tests := []struct{ name, want string }{
		{"4.3.2.1.in-addr.arpa", "1.2.3.4"},
		{"b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.0.0.0.0.1.2.3.4.ip6.arpa", "4321:0:1:2:3:4:567:89ab"},
		{"3.2.1.in-addr.arpa", ""},
		{"x.3.2.1.in-addr.arpa", ""},
		{"1.ip6.arpa", ""},
		{"example.com", ""},
	}
	for _, tt := range tests {
		got, ok := reverseAddr(tt.name)
		if ok != (tt.want != "") || ok && got.String() != tt.want {
			t.Errorf("reverseAddr(%q) = %v, %v; want %q", tt.name, got, ok, tt.want)
		}
	}
}

// web is a resolver that knows one name.
func web() *resolver {
	return &resolver{answer: func(q dnsmessage.Question) ([]dnsmessage.Resource, bool) {
		if !strings.EqualFold(q.Name.String(), "web.") {
			return nil, false
		}
		return []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: ttl},
			Body:   &dnsmessage.AResource{A: netip.MustParseAddr("10.0.0.2").As4()},
		}}, true
	}}
}

func query(t testing.TB, name string) []byte {
	t.Helper()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestOwnNamesAreAnsweredAndOthersLeft(t *testing.T) {
	var m dnsmessage.Message
	if err := m.Unpack(web().own(query(t, "web."), maxUDP)); err != nil {
		t.Fatal(err)
	}
	if m.ID != 7 || !m.Response || len(m.Answers) != 1 {
		t.Errorf("answer = %+v, want one address for query 7", m)
	}
	for name, q := range map[string][]byte{"another name": query(t, "example.com."), "half a query": query(t, "web.")[:14], "nothing": nil} {
		if got := web().own(q, maxUDP); got != nil {
			t.Errorf("%s is answered: %x", name, got)
		}
	}
}

// withSize is a query that says how long a datagram the client takes.
func withSize(t testing.TB, name string, size int) []byte {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(query(t, name)); err != nil {
		t.Fatal(err)
	}
	var h dnsmessage.ResourceHeader
	if err := h.SetEDNS0(size, dnsmessage.RCodeSuccess, false); err != nil {
		t.Fatal(err)
	}
	m.Additionals = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{}}}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// crowd has n addresses for each name.
func crowd(n int) *resolver {
	return &resolver{answer: func(q dnsmessage.Question) (out []dnsmessage.Resource, known bool) {
		for i := range n {
			out = append(out, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: ttl},
				Body:   &dnsmessage.AResource{A: [4]byte{10, 0, byte(i >> 8), byte(i)}},
			})
		}
		return out, true
	}}
}

func TestAnswersFitTheirClient(t *testing.T) {
	for _, tt := range []struct {
		name            string
		query           []byte
		limit, answers  int
		truncated, edns bool
	}{
		{"a-few-fit", query(t, "pool."), maxUDP, 5, false, false},
		{"many-do-not-fit-what-every-client-takes", query(t, "pool."), maxUDP, 200, true, false},
		{"many-fit-a-client-that-takes-more", withSize(t, "pool.", 4096), maxUDP, 200, false, true},
		{"a-client-that-takes-more-than-we-send", withSize(t, "pool.", 65000), maxUDP, 2000, true, true},
		{"a-client-that-says-less-than-all-take", withSize(t, "pool.", 1), maxUDP, 20, false, true},
		{"no-limit-by-tcp", withSize(t, "pool.", 65535), 65535, 2000, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := crowd(tt.answers).own(tt.query, tt.limit)
			var m dnsmessage.Message
			if err := m.Unpack(b); err != nil {
				t.Fatal(err)
			}
			if m.Truncated != tt.truncated || !m.Truncated && len(m.Answers) != tt.answers || (len(m.Additionals) == 1) != tt.edns || len(b) > tt.limit {
				t.Errorf("%d bytes, %d answers, truncated: %v, with EDNS: %v; want %+v", len(b), len(m.Answers), m.Truncated, len(m.Additionals) == 1, tt)
			}
		})
	}
}

func FuzzOwn(f *testing.F) {
	f.Add(query(f, "web."), uint16(1))
	f.Add(query(f, "other."), uint16(100))
	f.Add(withSize(f, "web.", 1232), uint16(300))
	f.Fuzz(func(t *testing.T, q []byte, n uint16) {
		for _, r := range []*resolver{web(), crowd(int(n % 1000))} {
			b := r.own(q, maxUDP)
			if b == nil {
				continue
			}
			var m dnsmessage.Message
			if err := m.Unpack(b); err != nil || !m.Response || len(b) > maxUDP {
				t.Errorf("answer to %x is no response that fits: %d bytes, %v", q, len(b), err)
			}
		}
	})
}
