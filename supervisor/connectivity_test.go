package supervisor_test

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/minke-os/minke/supervisor"
)

func TestADeviceShowsThatItsServerIsGone(t *testing.T) {
	t.Parallel() // it looks every ten seconds
	led := filepath.Join(t.TempDir(), "brightness")
	m := manage(t, release("c1", "garden:1", "", ""), supervisor.Config{LED: led})
	lit := func() bool {
		data, err := os.ReadFile(led)
		return err == nil && string(data) == "1"
	}
	m.is("GET", "/v1/healthy", "", 200, "OK")
	if lit() {
		t.Error("the LED shines although the server is there")
	}
	addr := m.f.Listener.Addr().String()
	m.f.CloseClientConnections()
	m.f.Close()
	m.until("the LED blinks", lit)
	m.is("GET", "/v1/healthy", "", 500, "Unhealthy")
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	m.until("it is healthy again", func() bool {
		code, _ := m.call("GET", "/v1/healthy", "")
		return code == 200
	})
}
