package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/minke-os/minke/internal/testdaemon"
	"github.com/minke-os/minke/internal/testenv"
)

// importServers makes an image of servers as Debian packages them.
func importServers(t *testing.T, d *testdaemon.Daemon) {
	t.Helper()
	tar := filepath.Join(d.Dir, "servers.tar")
	out, err := exec.Command(testenv.Need(t, "mmdebstrap"), "--quiet", "--variant=extract",
		"--include=nginx-light,mosquitto,mosquitto-clients,dnsmasq-base,busybox-static", "bookworm", tar).CombinedOutput()
	if err != nil {
		t.Fatalf("mmdebstrap: %v\n%s", err, out)
	}
	f, err := os.Open(tar)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := d.ImageImport(t.Context(), client.ImageImportSource{Source: f, SourceName: "-"}, "servers:latest",
		client.ImageImportOptions{Changes: []string{"ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin"}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
}

// A server is a container of that image, with one file of its own.
type server struct {
	name, file, text string
	cmd              []string
	publish          []string // 80/tcp
}

func (s server) start(t *testing.T, d *testdaemon.Daemon) string {
	t.Helper()
	// Packages are only unpacked: there is no user yet.
	c := cmd(append([]string{"busybox", "sh", "-c", `busybox mkdir -p /run /var/run; echo root:x:0:0::/:/bin/sh > /etc/passwd; echo root:x:0: > /etc/group; exec "$@"`, "sh"}, s.cmd...)...)
	c.Image = "servers:latest"
	h := container.HostConfig{NetworkMode: "app", PortBindings: network.PortMap{}}
	c.ExposedPorts = network.PortSet{}
	for _, p := range s.publish {
		port := network.MustParsePort(p)
		c.ExposedPorts[port], h.PortBindings[port] = struct{}{}, []network.PortBinding{{}}
	}
	if s.file != "" {
		path := filepath.Join(d.Dir, s.name+".conf")
		if err := os.WriteFile(path, []byte(s.text), 0o644); err != nil {
			t.Fatal(err)
		}
		h.Binds = []string{path + ":" + s.file}
	}
	return d.RunDetached(testdaemon.Spec{Name: s.name, Config: c, Host: h})
}

// publishedAt is where a port is reached from the neighbour.
func publishedAt(t *testing.T, d *testdaemon.Daemon, name, port string) string {
	t.Helper()
	for _, b := range d.Inspect(name).NetworkSettings.Ports[network.MustParsePort(port)] {
		if b.HostIP.Is4() {
			return net.JoinHostPort(testdaemon.HostIPv4, b.HostPort)
		}
	}
	t.Fatalf("%s of %s is not published; its log:\n%s", port, name, d.Logs(name))
	return ""
}

// TestRealServers runs nginx, mosquitto and dnsmasq from Debian as an
// application does. make test-apps runs it.
func TestRealServers(t *testing.T) {
	if os.Getenv("MINKE_TEST_APPS") == "" {
		t.Skip("takes a minute and downloads packages: run make test-apps")
	}
	d := testdaemon.Start(t)
	importServers(t, d)
	n := d.Neighbor()
	makeNetwork(t, d, "app", client.NetworkCreateOptions{EnableIPv6: yes()})
	dial := func(proto, addr string) (c net.Conn, err error) {
		err = n.Do(func() error { c, err = net.DialTimeout(proto, addr, 5*time.Second); return err })
		return c, err
	}

	t.Run("nginx-follows-a-container-to-its-next-address", func(t *testing.T) {
		server{name: "site", cmd: []string{"busybox", "sh", "-c", "mkdir -p /w; busybox hostname -i > /w/index.html; exec busybox httpd -f -p 80 -h /w"}}.start(t, d)
		server{
			name: "ingress", file: "/etc/nginx/nginx.conf", publish: []string{"80/tcp"}, cmd: []string{"nginx", "-g", "daemon off; user root;"},
			text: "events {}\nhttp { access_log off; resolver 127.0.0.11 valid=1s; server { listen 80; location / { set $up http://site:80; proxy_pass $up; } } }\n",
		}.start(t, d)
		get := func(want string) {
			t.Helper()
			keepTrying(t, func() error {
				c, err := dial("tcp", publishedAt(t, d, "ingress", "80/tcp"))
				if err != nil {
					return err
				}
				defer c.Close()
				fmt.Fprint(c, "GET / HTTP/1.0\r\nHost: x\r\n\r\n")
				resp, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				if err != nil || !strings.Contains(string(b), want) {
					return fmt.Errorf("through nginx: %s, %q, %v; want %s", resp.Status, b, err, want)
				}
				return nil
			})
		}
		address := func() string { return d.Inspect("site").NetworkSettings.Networks["app"].IPAddress.String() }
		first := address()
		get(first)
		if _, err := d.ContainerStop(t.Context(), "site", client.ContainerStopOptions{}); err != nil {
			t.Fatal(err)
		}
		server{name: "thief", cmd: []string{"busybox", "sleep", "6000"}}.start(t, d)
		if _, err := d.ContainerStart(t.Context(), "site", client.ContainerStartOptions{}); err != nil {
			t.Fatal(err)
		}
		if address() == first {
			t.Fatal("the site has its address again: nothing is tested")
		}
		get(address())
	})

	t.Run("mosquitto-by-name-by-published-port-and-by-websocket", func(t *testing.T) {
		server{
			name: "broker", file: "/etc/mosquitto/mosquitto.conf", publish: []string{"1883/tcp", "9001/tcp"},
			cmd:  []string{"mosquitto", "-c", "/etc/mosquitto/mosquitto.conf"},
			text: "user root\nallow_anonymous true\nlistener 1883\nlistener 9001\nprotocol websockets\n",
		}.start(t, d)
		server{name: "client", cmd: []string{"busybox", "sleep", "6000"}}.start(t, d)
		keepTrying(t, func() error {
			if out, code := d.Exec("client", "mosquitto_pub", "-h", "broker", "-t", "a", "-m", "hello", "-r"); code != 0 {
				return fmt.Errorf("publish by name: %s", out)
			}
			return nil
		})
		host, port, _ := net.SplitHostPort(publishedAt(t, d, "broker", "1883/tcp"))
		if out, _ := d.Exec("client", "mosquitto_sub", "-h", host, "-p", port, "-t", "a", "-C", "1", "-W", "10"); out != "hello\n" {
			t.Errorf("subscribe by the published port: %q, want hello", out)
		}
		c, err := dial("tcp", publishedAt(t, d, "broker", "9001/tcp"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprint(c, "GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n")
		if line, err := bufio.NewReader(c).ReadString('\n'); !strings.Contains(line, "101") {
			t.Errorf("websocket from a neighbour: %q, %v; want 101", line, err)
		}
	})

	t.Run("dnsmasq-on-port-53", func(t *testing.T) {
		server{
			name: "names", publish: []string{"53/udp", "53/tcp"},
			cmd: []string{"dnsmasq", "-k", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root", "--group=root", "--address=/lab.example/192.0.2.77"},
		}.start(t, d)
		q := dnsmessage.Message{
			Header:    dnsmessage.Header{ID: 5, RecursionDesired: true},
			Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("x.lab.example."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
		}
		query, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		keepTrying(t, func() error {
			c, err := dial("udp", publishedAt(t, d, "names", "53/udp"))
			if err != nil {
				return err
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(time.Second))
			c.Write(query)
			b := make([]byte, 512)
			size, err := c.Read(b)
			var m dnsmessage.Message
			if err != nil || m.Unpack(b[:size]) != nil || len(m.Answers) != 1 || m.Answers[0].Body.(*dnsmessage.AResource).A != [4]byte{192, 0, 2, 77} {
				return fmt.Errorf("from a neighbour: %+v, %v", m.Answers, err)
			}
			return nil
		})
		at := d.Inspect("names").NetworkSettings.Networks["app"].IPAddress
		out := d.Sh("nslookup y.lab.example; nslookup names", container.HostConfig{NetworkMode: "app", DNS: []netip.Addr{at}})
		if !strings.Contains(out, "192.0.2.77") || !strings.Contains(out, at.String()) {
			t.Errorf("in a container that asks it: %s", out)
		}
	})
}
