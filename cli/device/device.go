// Package device is a client of the Supervisor API, as far as commands need
// it.
package device

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// A Client talks to one supervisor. It is safe for concurrent use.
type Client struct {
	base string
	http *http.Client
}

// New makes a client of the supervisor at base, a URL.
func New(base string) *Client { return &Client{base, &http.Client{}} }

// A Status is the answer of /v2/state/status.
type Status struct {
	AppState                string
	OverallDownloadProgress *int
	Containers              []Container
	Images                  []Image
	Release                 string
	Error                   string
	Undone                  bool // the target is given up; that before it is applied
	Trial                   int  // seconds that it has still to work, or it is undone
}

// A Container is one of a Status.
type Container struct {
	Status      string
	ServiceName string
	ContainerID string
	Health      string
	ExitCode    *int
	Restarts    int // by the engine, after it exited
}

// An Image is one of a Status.
type Image struct {
	Name             string
	ServiceName      string
	Status           string
	DownloadProgress *int
}

// An Info says what a device is.
type Info struct{ Arch, DeviceType string }

// A Line is one of a log.
type Line struct {
	ServiceName string
	Message     string
	IsSystem    bool
	IsStdErr    bool
	Timestamp   int64
}

// Status is what the device is doing.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var out Status
	return out, c.call(ctx, http.MethodGet, "/v2/state/status", nil, &out)
}

// Info says what the device is.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var out struct{ Info Info }
	err := c.call(ctx, http.MethodGet, "/v2/local/device-info", nil, &out)
	return out.Info, err
}

// Target is the device's own part of the local target state.
func (c *Client) Target(ctx context.Context) (map[string]any, error) {
	var out struct {
		State struct{ Local map[string]any }
	}
	err := c.call(ctx, http.MethodGet, "/v2/local/target-state", nil, &out)
	return out.State.Local, err
}

// SetTarget gives the device a new target state.
func (c *Client) SetTarget(ctx context.Context, body []byte) error {
	return c.call(ctx, http.MethodPost, "/v2/local/target-state", body, nil)
}

// localApp is the number of the application that up runs.
const localApp = 1

// Service does an action (start, stop, restart) on a service.
func (c *Client) Service(ctx context.Context, action, service string) error {
	body, err := json.Marshal(map[string]string{"serviceName": service})
	if err != nil {
		return err
	}
	return c.call(ctx, http.MethodPost, fmt.Sprintf("/v2/applications/%d/%s-service", localApp, action), body, nil)
}

// Logs calls line for each line of the device's log: the last n of each
// service, then, if follow is set, new ones until ctx ends.
func (c *Client) Logs(ctx context.Context, n int, follow bool, line func(Line) error) error {
	q := url.Values{"tail": {strconv.Itoa(n)}, "follow": {strconv.FormatBool(follow)}}
	resp, err := c.do(ctx, http.MethodGet, "/v2/local/logs?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for first := true; ; first = false {
		var l Line
		err := dec.Decode(&l)
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read logs: %w", err)
		}
		if first && l.IsSystem { // "Streaming logs"
			continue
		}
		if err := line(l); err != nil {
			return err
		}
	}
}

func (c *Client) call(ctx context.Context, method, path string, body []byte, into any) error {
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if into == nil {
		_, err := io.Copy(io.Discard, resp.Body)
		return err
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("supervisor: %s %s: %w", method, path, err)
	}
	return nil
}

func (c *Client) do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		return nil, refusal(resp)
	}
	return resp, nil
}

// refusal is the supervisor's own message, which is JSON or text.
func refusal(resp *http.Response) error {
	data, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return err
	}
	var answer struct{ Message string }
	if json.Unmarshal(data, &answer) != nil || answer.Message == "" {
		answer.Message = strings.TrimSpace(string(data))
	}
	return fmt.Errorf("the supervisor refused: %s", answer.Message)
}
