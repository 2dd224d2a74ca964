package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/client"

	"github.com/minke-os/minke/cli/buildcontext"
)

// Build sends a context to the engine's classic builder and calls show for
// each line it prints. It returns the image's ID.
func Build(ctx context.Context, engine *client.Client, bc *buildcontext.Context, opts client.ImageBuildOptions, show func(string)) (string, error) {
	body := stream(bc)
	defer body.Close()
	return send(ctx, engine, body, opts, show)
}

// stream is a context as a tar. Closing it early ends the goroutine that
// writes it.
func stream(bc *buildcontext.Context) io.ReadCloser {
	body, w := io.Pipe()
	go func() { w.CloseWithError(bc.Tar(w)) }()
	return body
}

func send(ctx context.Context, engine *client.Client, body io.Reader, opts client.ImageBuildOptions, show func(string)) (string, error) {
	res, err := engine.ImageBuild(ctx, body, opts)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	return follow(json.NewDecoder(res.Body), show)
}

func follow(dec *json.Decoder, show func(string)) (id string, err error) {
	for {
		var m jsonstream.Message
		err := dec.Decode(&m)
		switch {
		case errors.Is(err, io.EOF) && id == "":
			return "", errors.New("the engine ended the build without an image")
		case errors.Is(err, io.EOF):
			return id, nil
		case err != nil:
			return "", fmt.Errorf("read build output: %w", err)
		case m.Error != nil:
			return "", errors.New(m.Error.Message)
		case m.Aux != nil:
			var aux struct{ ID string }
			if json.Unmarshal(*m.Aux, &aux) == nil && aux.ID != "" {
				id = aux.ID
			}
		case m.Stream != "":
			show(m.Stream)
		case m.Status != "" && m.Progress == nil:
			show(m.Status + "\n")
		}
	}
}
