package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/testdaemon"
)

var ourTable = &nftables.Table{Family: nftables.TableFamilyINet, Name: "minke_mt0"}

// withRules changes or reads the packet rules of the daemon's host.
func withRules(t *testing.T, d *testdaemon.Daemon, f func(*nftables.Conn) error) {
	t.Helper()
	err := d.InNetNS(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		return f(c)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// setElements counts those of each of our sets.
func setElements(t *testing.T, d *testdaemon.Daemon) map[string]int {
	t.Helper()
	out := map[string]int{}
	withRules(t, d, func(c *nftables.Conn) error {
		sets, err := c.GetSets(ourTable)
		if err != nil {
			return err
		}
		for _, s := range sets {
			all, err := c.GetSetElements(s)
			if err != nil {
				return err
			}
			if len(all) > 0 {
				out[s.Name] = len(all)
			}
		}
		return nil
	})
	return out
}

func userRules(t *testing.T, d *testdaemon.Daemon) (n int) {
	t.Helper()
	withRules(t, d, func(c *nftables.Conn) error {
		rules, err := c.GetRules(ourTable, &nftables.Chain{Name: "user", Table: ourTable})
		n = len(rules)
		return err
	})
	return n
}

func addUserRule(t *testing.T, d *testdaemon.Daemon) {
	t.Helper()
	withRules(t, d, func(c *nftables.Conn) error {
		c.AddRule(&nftables.Rule{Table: ourTable, Chain: &nftables.Chain{Name: "user", Table: ourTable}, Exprs: []expr.Any{&expr.Counter{}}})
		return c.Flush()
	})
}

func TestPacketRulesAreRepairedAndKept(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t)
	n := d.Neighbor()
	makeNetwork(t, d, "one", client.NetworkCreateOptions{EnableIPv6: yes()})
	s := newSite(t, d, "site", "one", network.PortBinding{})
	works := func() error {
		for host, want := range map[string]string{testdaemon.HostIPv4: testdaemon.NeighborIPv4, testdaemon.HostIPv6: testdaemon.NeighborIPv6} {
			if got := expect(want, n.Do, "tcp", s.at(t, "tcp", host)); got != want {
				return fmt.Errorf("by %s the site sees %q, want %q", host, got, want)
			}
		}
		return nil
	}
	keepTrying(t, works)
	whole, ports := setElements(t, d), d.Inspect(s.id).NetworkSettings.Ports

	addUserRule(t, d)
	d.Kill()
	d.Up()
	if got := userRules(t, d); got != 1 {
		t.Errorf("the owner has %d rules after kill -9 and a start, want 1", got)
	}
	if err := works(); err != nil {
		t.Error("after kill -9 and a start: ", err)
	}
	if got := d.Inspect(s.id).NetworkSettings.Ports; fmt.Sprint(got) != fmt.Sprint(ports) {
		t.Errorf("ports after a start: %v, before: %v", got, ports)
	}

	for name, damage := range map[string]func(*nftables.Conn) error{
		"everything": func(c *nftables.Conn) error { c.FlushRuleset(); return nil },
		"our-table":  func(c *nftables.Conn) error { c.DelTable(ourTable); return nil },
		"our-rules":  func(c *nftables.Conn) error { c.FlushTable(ourTable); return nil },
		"a-set": func(c *nftables.Conn) error {
			s, err := c.GetSetByName(ourTable, "any4")
			if err == nil {
				c.FlushSet(s)
			}
			return err
		},
	} {
		t.Run("flushed-while-it-runs-"+name, func(t *testing.T) {
			withRules(t, d, func(c *nftables.Conn) error {
				if err := damage(c); err != nil {
					return err
				}
				return c.Flush()
			})
			keepTrying(t, works)
			if got := setElements(t, d); fmt.Sprint(got) != fmt.Sprint(whole) {
				t.Errorf("elements %v, want %v", got, whole)
			}
		})
	}
	t.Run("flushed-while-it-is-away", func(t *testing.T) {
		d.Kill()
		withRules(t, d, func(c *nftables.Conn) error { c.FlushRuleset(); return c.Flush() })
		d.Up()
		if err := works(); err != nil {
			t.Error(err)
		}
		if got := setElements(t, d); fmt.Sprint(got) != fmt.Sprint(whole) {
			t.Errorf("elements %v, want %v", got, whole)
		}
	})
}

func TestAContainerChangesAFewElementsOfTheRules(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t)
	makeNetwork(t, d, "one", client.NetworkCreateOptions{EnableIPv6: yes()})
	port := network.MustParsePort("80/tcp")
	one := func(i int) string {
		return d.RunDetached(testdaemon.Spec{Name: fmt.Sprint("c", i, "x"), Config: container.Config{Cmd: []string{"sleep", "6000"}, ExposedPorts: network.PortSet{port: {}}},
			Host: container.HostConfig{NetworkMode: "one", PortBindings: network.PortMap{port: {{}}}}})
	}
	for i := range 10 {
		one(i)
	}
	var monitor *netlink.Conn
	err := d.InNetNS(func() (err error) {
		if monitor, err = netlink.Dial(unix.NETLINK_NETFILTER, nil); err == nil {
			err = monitor.JoinGroup(unix.NFNLGRP_NFTABLES)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer monitor.Close()
	id := one(10)
	if _, err := d.ContainerRemove(t.Context(), id, client.ContainerRemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	// A mark, so that there is an end to read to.
	addUserRule(t, d)
	count := map[uint16]int{}
	for count[unix.NFT_MSG_NEWRULE] == 0 {
		msgs, err := monitor.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range msgs {
			count[uint16(m.Header.Type&0xff)]++
		}
	}
	delete(count, unix.NFT_MSG_NEWGEN)
	want := map[uint16]int{unix.NFT_MSG_NEWRULE: 1, unix.NFT_MSG_NEWSETELEM: 2, unix.NFT_MSG_DELSETELEM: 2}
	if fmt.Sprint(count) != fmt.Sprint(want) {
		t.Errorf("changes of packet rules for the start and end of a container with a port published for IPv4 and IPv6: %v by message, want %v", count, want)
	}
}

// networkPoints are the names in the calls of Host.at.
func networkPoints(t *testing.T) (names []string) {
	t.Helper()
	call := regexp.MustCompile(`h\.at\("([a-z-]+)"\)`)
	files, err := filepath.Glob("../../engine/internal/network/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range call.FindAllStringSubmatch(string(data), -1) {
			if !slices.Contains(names, m[1]) {
				names = append(names, m[1])
			}
		}
	}
	if len(names) < 9 {
		t.Fatalf("fault points = %v, want at least 9", names)
	}
	return names
}

// networkLife takes two networks and a container through what can happen to
// them, as far as the daemon lives.
func networkLife(d *testdaemon.Daemon) error {
	ctx := context.Background()
	for _, name := range []string{"first", "second"} {
		if _, err := d.NetworkCreate(ctx, name, client.NetworkCreateOptions{EnableIPv6: yes()}); err != nil {
			return err
		}
	}
	c := cmd("sleep", "6000")
	var h container.HostConfig
	c.Image, h.NetworkMode = testdaemon.Image, "second"
	c.ExposedPorts, h.PortBindings = published(80, 0)
	if _, err := d.ContainerCreate(ctx, client.ContainerCreateOptions{Name: "victim", Config: &c, HostConfig: &h}); err != nil {
		return err
	}
	if _, err := d.ContainerStart(ctx, "victim", client.ContainerStartOptions{}); err != nil {
		return err
	}
	if _, err := d.NetworkConnect(ctx, "first", client.NetworkConnectOptions{Container: "victim"}); err != nil {
		return err
	}
	if _, err := d.NetworkDisconnect(ctx, "second", client.NetworkDisconnectOptions{Container: "victim"}); err != nil {
		return err
	}
	if _, err := d.ContainerRemove(ctx, "victim", client.ContainerRemoveOptions{Force: true}); err != nil {
		return err
	}
	for _, name := range []string{"first", "second"} {
		if _, err := d.NetworkRemove(ctx, name, client.NetworkRemoveOptions{}); err != nil {
			return err
		}
	}
	return nil
}

func TestDeathAtEachStepOfANetworkLeaksNothing(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t)
	ctx := t.Context()
	makeNetwork(t, d, "kept", client.NetworkCreateOptions{EnableIPv6: yes()})
	s := newSite(t, d, "bystander", "kept", network.PortBinding{})
	links, sets := d.Links(), setElements(t, d)
	for _, point := range networkPoints(t) {
		t.Run(point, func(t *testing.T) {
			d.Stop()
			d.Prepare = func(c *exec.Cmd) { c.Env = append(os.Environ(), "MINKE_DIE_AT="+point) }
			d.Up()
			if networkLife(d) == nil {
				t.Fatalf("the daemon outlived %s", point)
			}
			testdaemon.WaitDead(t, d.Pid())
			d.Kill() // collects it
			d.Prepare = nil
			d.Up()
			if got := expect("any", d.InNetNS, "tcp", s.at(t, "tcp", "127.0.0.1")); got == "" {
				t.Error("the bystander's port does not answer")
			}
			// What there is, is whole: it can be used and removed.
			if list, err := d.ContainerList(ctx, client.ContainerListOptions{}); err != nil {
				t.Error(err)
			} else if slices.ContainsFunc(list.Items, func(c container.Summary) bool { return c.Names[0] == "/victim" }) {
				var got string
				for _, ep := range d.Inspect("victim").NetworkSettings.Networks {
					got += net.JoinHostPort(ep.IPAddress.String(), "80")
				}
				if out, code := d.Exec("victim", "ip", "-o", "addr"); code != 0 || !strings.Contains(out, "eth") {
					t.Errorf("the victim runs, on %s, with %s", got, out)
				}
			}
			d.ContainerRemove(ctx, "victim", client.ContainerRemoveOptions{Force: true})
			for _, name := range []string{"first", "second"} {
				if _, err := d.NetworkInspect(ctx, name, client.NetworkInspectOptions{}); err != nil {
					continue
				}
				if out := d.Sh("ip -o addr show eth0", container.HostConfig{NetworkMode: container.NetworkMode(name)}); !strings.Contains(out, "inet6") {
					t.Errorf("network %s that was left does not work: %s", name, out)
				}
				if _, err := d.NetworkRemove(ctx, name, client.NetworkRemoveOptions{}); err != nil {
					t.Error(err)
				}
			}
			// Cables go with the last process of a namespace, in the kernel's own time.
			keepTrying(t, func() error {
				if got := d.Links(); len(got) != len(links) {
					return fmt.Errorf("interfaces %v, want %v", got, links)
				}
				return nil
			})
			if got := setElements(t, d); fmt.Sprint(got) != fmt.Sprint(sets) {
				t.Errorf("elements of packet rules: %v, want %v", got, sets)
			}
		})
	}
}

// The kernel takes a dead container's namespace apart in its own time; here it
// has it for as long as the test wants. Whoever gets the address next must have
// it alone.
func TestAnEndedContainerIsOffItsNetwork(t *testing.T) {
	d := testdaemon.Start(t)
	if _, err := d.NetworkCreate(t.Context(), "n", client.NetworkCreateOptions{Options: map[string]string{"com.docker.network.bridge.name": "mtn"}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.NetworkRemove(context.Background(), "n", client.NetworkRemoveOptions{}) })
	remove := func(id string) {
		if _, err := d.ContainerRemove(t.Context(), id, client.ContainerRemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
	}
	bridgeAddress := func() (mac string) {
		err := d.InNetNS(func() error {
			i, err := net.InterfaceByName("mtn")
			if err == nil {
				mac = i.HardwareAddr.String()
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return mac
	}
	onN := container.HostConfig{NetworkMode: "n"}
	for _, tt := range []struct {
		name string
		end  func(id string)
	}{
		{"removed", remove},
		{"removed-after-minked-died", func(id string) { d.Kill(); d.Up(); remove(id) }},
		{"killed-with-minked-and-the-monitor", func(id string) { d.KillAll(); d.Up(); remove(id) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			old := d.RunDetached(testdaemon.Spec{Config: cmd("sleep", "1000"), Host: onN})
			was, mac := d.Inspect(old).NetworkSettings.Networks["n"], bridgeAddress()
			err := d.InContainer(old, func() error {
				tt.end(old)
				next := d.RunDetached(testdaemon.Spec{Config: sh("echo hello > /f; exec httpd -f -p 80 -h /"), Host: onN})
				defer remove(next)
				if now := d.Inspect(next).NetworkSettings.Networks["n"]; now.IPAddress != was.IPAddress {
					t.Fatalf("the next container has address %s, want %s for this test", now.IPAddress, was.IPAddress)
				}
				// Refused would be an answer.
				_, err := net.DialTimeout("tcp", net.JoinHostPort(was.Gateway.String(), "9"), 300*time.Millisecond)
				if err == nil || errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("from the dead container's namespace to the gateway: %v, want no answer", err)
				}
				// Once it listens, nobody else's answer may be heard.
				keepTrying(t, func() error {
					if out, code := d.Exec(next, "wget", "-q", "-O", "/dev/null", "http://127.0.0.1/f"); code != 0 {
						return errors.New(out)
					}
					return nil
				})
				if got, err := d.Get("http://" + was.IPAddress.String() + "/f"); got != "hello\n" {
					t.Errorf("from the host to the next owner of the address: %q, %v", got, err)
				}
				if now := bridgeAddress(); now != mac {
					t.Errorf("the bridge's hardware address was %s and is %s: what its containers know of it is wrong", mac, now)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}
