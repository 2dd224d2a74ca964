package main

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testdaemon"
)

// TestFirewallModes looks at a device from a host beside it.
func TestFirewallModes(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t, "--supervisor=true")
	d.WaitSupervisor()
	n := d.Neighbor()
	defer func() { // else it makes its containers anew as they are removed
		d.Stop()
		d.Up("--supervisor=false")
	}()
	n.Route("10.114.104.0/25")
	const (
		site, ssh = testdaemon.HostIPv4 + ":7777", testdaemon.HostIPv4 + ":22222"
		site6     = "[" + testdaemon.HostIPv6 + "]:7777"
		api       = "10.114.104.1:48484"
	)
	for _, addr := range []string{site, site6, ssh} {
		if err := d.InNetNS(func() error {
			l, err := net.Listen("tcp", addr)
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	reached := func(addr string) bool {
		c, err := n.Dial("tcp", addr, 5*time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	set := func(mode, network string) {
		t.Helper()
		body := fmt.Sprintf(`{"local":{"config":{"HOST_FIREWALL_MODE":%q},"apps":{"1":{"name":"a","commit":"c","services":{"1":{"serviceName":"web","imageId":1,"image":%q,
		 "command":"sleep 1000","stop_signal":"SIGKILL","network_mode":%q,"labels":{"io.balena.features.supervisor-api":"1"}}}}}}}`, mode, testdaemon.Image, network)
		c := http.Client{Transport: &http.Transport{DialContext: d.Dial, DisableKeepAlives: true}}
		resp, err := c.Post("http://127.0.0.1:48484/v2/local/target-state", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("the target is answered %s", resp.Status)
		}
	}
	// become waits until a mode holds.
	become := func(what string, on bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); reached(site) == on; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: the host is reached: %v, want %v; log:\n%s", what, reached(site), !on, d.Log())
			}
		}
		if reached(site6) == on {
			t.Errorf("%s: IPv6 is reached: %v, want %v", what, !on, !on)
		}
		if !reached(ssh) {
			t.Errorf("%s: port 22222 is not reached", what)
		}
		if reached(api) {
			t.Errorf("%s: the Supervisor API is reached from outside", what)
		}
	}

	set("off", "")
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if out, err := d.Get("http://" + api + "/ping"); err == nil && out == "OK" {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("the API does not answer on the supervisor's network: %v; log:\n%s", err, d.Log())
		}
	}
	become("off", false)

	before, err := n.Dial("tcp", site, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	set("on", "")
	become("on", true)
	if _, err := before.Write([]byte("still here")); err != nil {
		t.Errorf("a connection from before the firewall: %v", err)
	}
	list, err := d.ContainerList(t.Context(), client.ContainerListOptions{Filters: make(client.Filters).Add("label", "io.balena.service-name=web")})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("containers of web: %v, %v; want one", list.Items, err)
	}
	web := list.Items[0].ID
	d.WaitFor(web, "run", func(c container.InspectResponse) bool { return c.State.Running })
	if out, code := d.Exec(web, "sh", "-c", "wget -qO- $BALENA_SUPERVISOR_ADDRESS/ping"); out != "OK" {
		t.Errorf("a service asks the API: %q, %d", out, code)
	}
	set("auto", "")
	become("auto without a service on the host's network", false)
	set("auto", "host")
	become("auto with one", true)
	set("nonsense", "host")
	become("a mode that is none", false)

	set("on", "")
	become("on again", true)
	withRules(t, d, func(c *nftables.Conn) error { c.FlushRuleset(); return c.Flush() })
	become("on after another program removed all tables", true)
	withRules(t, d, func(c *nftables.Conn) error {
		table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "minke_supervisor"}
		c.FlushChain(&nftables.Chain{Name: "input", Table: table})
		return c.Flush()
	})
	become("on after another program removed the rules", true)
	d.Kill()
	become("on without minked", true)
	d.Up()
	d.WaitSupervisor()
	become("on after a restart", true)
}

func TestTheFirewallGoesWithTheSupervisor(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t, "--supervisor=true")
	d.WaitSupervisor()
	tables := func() (n int) {
		err := d.InNetNS(func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			all, err := c.ListTables()
			for _, table := range all {
				if table.Name == "minke_supervisor" {
					n++
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	keepTrying(t, func() error {
		if n := tables(); n != 1 {
			return fmt.Errorf("%d tables of the supervisor, want one", n)
		}
		return nil
	})
	d.Stop()
	if n := tables(); n != 0 {
		t.Errorf("%d tables of the supervisor after its end, want none", n)
	}
	d.Up("--supervisor=false")
}
