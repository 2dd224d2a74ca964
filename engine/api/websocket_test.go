package api_test

import (
	"net"
	"testing"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/net/websocket"

	"github.com/minke-os/minke/internal/testdaemon"
)

func TestAttachOverAWebsocketGoesBothWays(t *testing.T) {
	d := testdaemon.Start(t)
	id := d.RunDetached(testdaemon.Spec{Config: container.Config{Cmd: []string{"cat"}, OpenStdin: true, StdinOnce: true}})
	config, err := websocket.NewConfig("ws://localhost/containers/"+id+"/attach/ws?stream=1&stdin=1&stdout=1", "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", d.Socket)
	if err != nil {
		t.Fatal(err)
	}
	ws, err := websocket.NewClient(config, conn)
	if err != nil {
		t.Fatal(err)
	}
	if err := websocket.Message.Send(ws, []byte("typed\n")); err != nil {
		t.Fatal(err)
	}
	var got []byte
	if err := websocket.Message.Receive(ws, &got); err != nil || string(got) != "typed\n" {
		t.Errorf("received %q, %v; want what was sent", got, err)
	}
	ws.Close() // which is the end of input
	if code := d.WaitExit(id); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}
