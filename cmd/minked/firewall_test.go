package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
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

// supervisorTables are the names of the supervisor's tables.
func supervisorTables(t *testing.T, d *testdaemon.Daemon) (names []string) {
	t.Helper()
	withRules(t, d, func(c *nftables.Conn) error {
		all, err := c.ListTables()
		for _, table := range all {
			if strings.HasPrefix(table.Name, "minke_supervisor") {
				names = append(names, table.Name)
			}
		}
		return err
	})
	return names
}

func TestTheFirewallGoesWithTheSupervisor(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t, "--supervisor=true")
	d.WaitSupervisor()
	keepTrying(t, func() error {
		if got := supervisorTables(t, d); len(got) != 1 {
			return fmt.Errorf("tables %v of the supervisor, want one", got)
		}
		return nil
	})
	d.Stop()
	if got := supervisorTables(t, d); len(got) != 0 {
		t.Errorf("tables %v of the supervisor after its end, want none", got)
	}
	d.Up("--supervisor=false")
}

// The port of the API may change from one start to the next, and the table of
// the old one would go on rejecting all but that port.
func TestTheFirewallFollowsThePort(t *testing.T) {
	t.Parallel()
	boot := t.TempDir()
	config := func(port int) {
		t.Helper()
		text := fmt.Sprintf(`{"uuid":"0123456789abcdef0123456789abcdef","listenPort":%d}`, port)
		if err := os.WriteFile(filepath.Join(boot, "config.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config(48484)
	d := testdaemon.Start(t, "--supervisor=true", "--boot-dir", boot)
	d.WaitSupervisor()
	defer func() {
		d.Stop()
		d.Up("--supervisor=false")
	}()
	send := func(method, url, body string) {
		t.Helper()
		req, err := http.NewRequest(method, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		c := http.Client{Transport: &http.Transport{DialContext: d.Dial, DisableKeepAlives: true}}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s %s is answered %s", method, url, resp.Status)
		}
	}
	become := func(want string) {
		t.Helper()
		keepTrying(t, func() error {
			if got := supervisorTables(t, d); len(got) != 1 || got[0] != want {
				return fmt.Errorf("tables %v of the supervisor, want %s", got, want)
			}
			return nil
		})
	}
	send("POST", "http://127.0.0.1:48484/v2/local/target-state", `{"local":{"config":{"HOST_FIREWALL_MODE":"on"},"apps":{}}}`)
	become("minke_supervisor")

	for _, end := range []func(){d.Kill, d.Stop} {
		config(50001)
		end()
		d.Up()
		become("minke_supervisor_50001")
		config(48484)
		end()
		d.Up()
		become("minke_supervisor")
	}

	// While it runs, what listens stays, whatever the file says.
	d.WaitSupervisor()
	config(50002)
	send("PATCH", "http://127.0.0.1:48484/v1/device/host-config", `{"network":{"hostname":"porch"}}`) // the file is read again
	send("POST", "http://127.0.0.1:48484/v2/local/target-state", `{"local":{"config":{"HOST_FIREWALL_MODE":"on"},"apps":{}}}`)
	if out, err := d.Get("http://127.0.0.1:48484/v1/device"); err != nil || !strings.Contains(out, `"api_port":48484`) {
		t.Errorf("the device says %s, %v; want the port that is listened on", out, err)
	}
	become("minke_supervisor")
}
