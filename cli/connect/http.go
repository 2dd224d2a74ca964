package connect

import (
	"context"
	"net"
	"net/http"

	"github.com/moby/moby/client"
)

// Base is what URLs of requests by HTTP begin with.
const Base = "http://engine"

// HTTP makes requests to the engine that Docker's client has no words for.
func HTTP(engine *client.Client) *http.Client {
	dial := engine.Dialer()
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}}
}
