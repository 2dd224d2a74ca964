package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/minke-os/minke/internal/testdaemon"
)

// nameServer answers every question for an A record with addr, unless it hangs.
func nameServer(t *testing.T, on func(func() error) error, at, addr string, hang bool) {
	t.Helper()
	reply := func(query []byte) []byte {
		var m dnsmessage.Message
		if m.Unpack(query) != nil || hang {
			return nil
		}
		m.Response, m.Additionals = true, nil
		if m.Questions[0].Type == dnsmessage.TypeA {
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 1},
				Body:   &dnsmessage.AResource{A: [4]byte(net.ParseIP(addr).To4())},
			}}
		}
		b, _ := m.Pack()
		return b
	}
	err := on(func() error {
		c, err := net.ListenPacket("udp", at+":53")
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", at+":53")
		if err != nil {
			return err
		}
		t.Cleanup(func() { c.Close(); l.Close() })
		go func() {
			buf := make([]byte, 4096)
			for {
				n, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				if r := reply(buf[:n]); r != nil {
					c.WriteTo(r, from)
				}
			}
		}()
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				if q, err := readFramed(conn); err == nil {
					if r := reply(q); r != nil {
						conn.Write(append([]byte{byte(len(r) >> 8), byte(len(r))}, r...))
					}
				}
				conn.Close()
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func readFramed(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

// ask puts a question to 127.0.0.11 on a container's network and returns the
// answers, or the response code.
func ask(on func(func() error) error, proto, name string, kind dnsmessage.Type) (out []string) {
	q := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 77, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}},
	}
	query, err := q.Pack()
	if err != nil {
		return []string{err.Error()}
	}
	var c net.Conn
	if err := on(func() (err error) { c, err = net.Dial(proto, "127.0.0.11:53"); return err }); err != nil {
		return []string{err.Error()}
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(4 * time.Second))
	var b []byte
	if proto == "tcp" {
		c.Write(append([]byte{byte(len(query) >> 8), byte(len(query))}, query...))
		b, err = readFramed(c)
	} else {
		c.Write(query)
		b = make([]byte, 4096)
		var n int
		n, err = c.Read(b)
		b = b[:n]
	}
	if err != nil {
		return []string{err.Error()}
	}
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		return []string{err.Error()}
	}
	if m.RCode != dnsmessage.RCodeSuccess {
		return []string{m.RCode.String()}
	}
	for _, a := range m.Answers {
		switch body := a.Body.(type) {
		case *dnsmessage.AResource:
			out = append(out, net.IP(body.A[:]).String())
		case *dnsmessage.AAAAResource:
			out = append(out, net.IP(body.AAAA[:]).String())
		case *dnsmessage.PTRResource:
			out = append(out, body.PTR.String())
		}
	}
	slices.Sort(out)
	return out
}

func TestNames(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t)
	// The host's /etc/resolv.conf, as a file of ours.
	d.Stop()
	resolv := filepath.Join(d.Dir, "resolv.conf")
	say := func(text string) {
		t.Helper()
		if err := os.WriteFile(resolv, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	say("nameserver 127.0.0.2\nsearch corp.example\noptions timeout:1\n")
	d.Prepare = func(c *exec.Cmd) {
		c.Args = append([]string{"unshare", "-m", "sh", "-c", `mount --bind "$0" /etc/resolv.conf && exec "$@"`, resolv, c.Path}, c.Args[1:]...)
		c.Path = "/usr/bin/unshare"
	}
	d.Up()
	for at, addr := range map[string]string{"127.0.0.2": "192.0.2.2", "127.0.0.3": "192.0.2.3"} {
		nameServer(t, d.InNetNS, at, addr, false)
	}
	nameServer(t, d.InNetNS, "127.0.0.4", "", true)

	makeNetwork(t, d, "one", client.NetworkCreateOptions{EnableIPv6: yes()})
	makeNetwork(t, d, "inner", client.NetworkCreateOptions{Internal: true})
	run := func(name string, networks map[string]*network.EndpointSettings, host container.HostConfig) site {
		t.Helper()
		host.NetworkMode = "one"
		for n := range networks {
			host.NetworkMode = container.NetworkMode(n)
		}
		c, err := d.ContainerCreate(t.Context(), client.ContainerCreateOptions{
			Name: name, Config: &container.Config{Image: testdaemon.Image, Cmd: []string{"sleep", "6000"}, Hostname: name + "-host"}, HostConfig: &host,
			NetworkingConfig: &network.NetworkingConfig{EndpointsConfig: networks},
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.ContainerStart(t.Context(), c.ID, client.ContainerStartOptions{}); err != nil {
			t.Fatal(err)
		}
		return site{d: d, id: c.ID}
	}
	pool := map[string]*network.EndpointSettings{"one": {Aliases: []string{"pool"}}}
	web, db := run("web", pool, container.HostConfig{}), run("db", pool, container.HostConfig{})
	inner := run("inner", map[string]*network.EndpointSettings{"inner": {}}, container.HostConfig{})
	plain := run("plain", map[string]*network.EndpointSettings{"bridge": {}}, container.HostConfig{})
	v4, v6 := web.endpoint("one").IPAddress.String(), web.endpoint("one").GlobalIPv6Address.String()
	both := []string{v4, db.endpoint("one").IPAddress.String()}
	slices.Sort(both)

	for _, proto := range []string{"udp", "tcp"} {
		for _, tt := range []struct {
			title, name string
			kind        dnsmessage.Type
			on          site
			want        []string
		}{
			{"name", "web.", dnsmessage.TypeA, db, []string{v4}},
			{"name-in-capitals", "WEB.", dnsmessage.TypeA, db, []string{v4}},
			{"own-name", "db.", dnsmessage.TypeA, db, []string{db.endpoint("one").IPAddress.String()}},
			{"name-and-network", "web.one.", dnsmessage.TypeA, db, []string{v4}},
			{"short-id", web.id[:12] + ".", dnsmessage.TypeA, db, []string{v4}},
			{"hostname", "web-host.", dnsmessage.TypeA, db, []string{v4}},
			{"ipv6", "web.", dnsmessage.TypeAAAA, db, []string{v6}},
			{"alias-of-two", "pool.", dnsmessage.TypeA, db, both},
			{"known-name-without-such-a-record", "web.", dnsmessage.TypeMX, db, nil},
			{"no-ipv6-on-a-network-without", "inner.", dnsmessage.TypeAAAA, inner, nil},
			{"reverse", reverseName(v4), dnsmessage.TypePTR, db, []string{"web.one."}},
			{"reverse-ipv6", reverseName(v6), dnsmessage.TypePTR, db, []string{"web.one."}},
			{"outside", "example.com.", dnsmessage.TypeA, db, []string{"192.0.2.2"}},
			{"not-of-another-network", "inner.", dnsmessage.TypeA, db, []string{"192.0.2.2"}},
			{"outside-from-an-internal-network", "example.com.", dnsmessage.TypeA, inner, []string{"RCodeServerFailure"}},
			{"outside-from-the-default-network", "example.com.", dnsmessage.TypeA, plain, []string{"192.0.2.2"}},
			{"no-names-on-the-default-network", "plain.", dnsmessage.TypeA, plain, []string{"192.0.2.2"}},
			{"the-host", "host.docker.internal.", dnsmessage.TypeA, db, []string{db.endpoint("one").Gateway.String()}},
		} {
			t.Run(proto+"-"+tt.title, func(t *testing.T) {
				if got := ask(tt.on.from, proto, tt.name, tt.kind); !slices.Equal(got, tt.want) {
					t.Errorf("%s %s = %v, want %v", tt.kind, tt.name, got, tt.want)
				}
			})
		}
	}
	if out, _ := d.Exec(web.id, "cat", "/etc/resolv.conf"); out != "nameserver 127.0.0.11\nsearch corp.example\noptions timeout:1 ndots:0\n" {
		t.Errorf("/etc/resolv.conf = %q", out)
	}

	t.Run("the-host's-servers-are-followed", func(t *testing.T) {
		say("nameserver 127.0.0.3\n")
		if got := ask(db.from, "udp", "example.com.", dnsmessage.TypeA); !slices.Equal(got, []string{"192.0.2.3"}) {
			t.Errorf("after a change: %v", got)
		}
	})
	t.Run("the-next-server-is-asked-when-one-does-not-answer", func(t *testing.T) {
		say("nameserver 127.0.0.4\nnameserver 127.0.0.5\nnameserver 127.0.0.3\n")
		for _, proto := range []string{"udp", "tcp"} {
			if got := ask(db.from, proto, "example.com.", dnsmessage.TypeA); !slices.Equal(got, []string{"192.0.2.3"}) {
				t.Errorf("by %s: %v", proto, got)
			}
		}
	})
	t.Run("names-are-answered-while-no-server-answers", func(t *testing.T) {
		say("nameserver 127.0.0.4\n")
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { ask(web.from, "udp", "example.com.", dnsmessage.TypeA) })
		}
		for _, s := range []site{web, db} {
			if got := ask(s.from, "udp", "web.", dnsmessage.TypeA); !slices.Equal(got, []string{v4}) {
				t.Errorf("a name: %v", got)
			}
		}
		wg.Wait()
	})
	t.Run("a-server-in-the-container-on-port-53", func(t *testing.T) {
		own := run("own", pool, container.HostConfig{DNS: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, DNSSearch: []string{"a.example", "b.example"}, DNSOptions: []string{"ndots:3"}})
		nameServer(t, own.from, "0.0.0.0", "192.0.2.9", false)
		if got := ask(own.from, "udp", "example.com.", dnsmessage.TypeA); !slices.Equal(got, []string{"192.0.2.9"}) {
			t.Errorf("a name that its own server knows: %v", got)
		}
		if got := ask(own.from, "udp", "web.", dnsmessage.TypeA); !slices.Equal(got, []string{v4}) {
			t.Errorf("a container's name: %v", got)
		}
		if out, _ := d.Exec(own.id, "cat", "/etc/resolv.conf"); out != "nameserver 127.0.0.11\nsearch a.example b.example\noptions ndots:3\n" {
			t.Errorf("/etc/resolv.conf = %q", out)
		}
	})
	t.Run("after-kill-9-and-a-start", func(t *testing.T) {
		say("nameserver 127.0.0.3\n")
		d.Kill()
		d.Up()
		for name, want := range map[string]string{"web.": v4, "example.com.": "192.0.2.3"} {
			if got := ask(db.from, "udp", name, dnsmessage.TypeA); !slices.Equal(got, []string{want}) {
				t.Errorf("%s = %v, want %s", name, got, want)
			}
		}
	})
}

func reverseName(ip string) string {
	b := net.ParseIP(ip)
	if v4 := b.To4(); v4 != nil {
		return fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa.", v4[3], v4[2], v4[1], v4[0])
	}
	var sb strings.Builder
	for i := 15; i >= 0; i-- {
		fmt.Fprintf(&sb, "%x.%x.", b[i]&15, b[i]>>4)
	}
	return sb.String() + "ip6.arpa."
}
