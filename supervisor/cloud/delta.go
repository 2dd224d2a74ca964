package cloud

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/minke-os/minke/internal/errdef"
)

// A Delta is an image that makes one image of another when it is pulled.
type Delta struct {
	Name  string
	Token string // to pull it with, as a registry token
}

// Delta asks the delta server for what makes dest of src, both of them names
// with a registry. The error is Busy while the server still makes it, NotFound
// if there is none and will be none; after another, asking again may help.
func (l *Link) Delta(ctx context.Context, src, dest string, timeout time.Duration) (Delta, error) {
	id := l.cfg.Device.Identity()
	if id.DeltaEndpoint == "" {
		return Delta{}, errdef.NotFound.Errorf("config.json names no deltaEndpoint")
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	token, err := l.deltaToken(ctx, id, src, dest)
	if err != nil {
		return Delta{}, err
	}
	q := url.Values{"src": {src}, "dest": {dest}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(id.DeltaEndpoint, "/")+"/api/v3/delta?"+q.Encode(), nil)
	if err != nil {
		return Delta{}, errdef.NotFound.Errorf("deltaEndpoint in config.json: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	var got struct{ Name string }
	err = l.ask(req, &got)
	switch status := statusOf(err); {
	case status == http.StatusBadGateway || status == http.StatusGatewayTimeout:
		return Delta{}, errdef.Busy.Wrap(err)
	case status >= 300 && status < 500 && status != http.StatusUnauthorized:
		// A redirect is a delta of version 2, which is a file.
		return Delta{}, errdef.NotFound.Wrap(err)
	case err != nil:
		return Delta{}, err
	case got.Name == "":
		return Delta{}, errdef.NotFound.Errorf("the delta server's answer names no image")
	}
	return Delta{got.Name, token}, nil
}

// deltaToken is one that lets the device pull both images and what is between.
func (l *Link) deltaToken(ctx context.Context, id Identity, src, dest string) (string, error) {
	registry, _, _ := strings.Cut(dest, "/")
	q := url.Values{"service": {registry}}
	for _, image := range []string{dest, src} {
		q.Add("scope", "repository:"+repository(image)+":pull")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(id.Endpoint, "/")+"/auth/v1/token?"+q.Encode(), nil)
	if err != nil {
		return "", errdef.NotFound.Errorf("apiEndpoint in config.json: %w", err)
	}
	req.SetBasicAuth("d_"+id.UUID, id.Key)
	var got struct{ Token string }
	if err := l.ask(req, &got); err != nil {
		return "", err
	}
	return got.Token, nil
}

// repository is an image's name without registry, tag and digest.
func repository(image string) string {
	_, path, _ := strings.Cut(image, "/")
	path, _, _ = strings.Cut(path, "@")
	path, _, _ = strings.Cut(path, ":")
	return path
}

// ask makes a request that follows no redirects, and decodes its JSON answer.
func (l *Link) ask(req *http.Request, into any) error {
	req.Header.Set("User-Agent", l.cfg.UserAgent)
	c := l.http
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxNames))
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return &refusal{status: resp.StatusCode, text: string(data[:min(len(data), 200)])}
	}
	if err := json.Unmarshal(data, into); err != nil {
		return errdef.Invalid.Errorf("%s answers with no JSON: %w", req.URL.Host, err)
	}
	return nil
}

// maxNames is the most that is read of an answer with names and tokens, in bytes.
const maxNames = 1 << 20
