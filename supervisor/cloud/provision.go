package cloud

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/minke-os/minke/internal/errdef"
)

// provisionRetry is the delay between attempts to register.
const provisionRetry = 30 * time.Second

// provision registers the device, however long that takes. It returns false if
// ctx ends before.
func (l *Link) provision(ctx context.Context) bool {
	for {
		id := l.cfg.Device.Identity()
		if id.Registered {
			return true
		}
		err := l.register(ctx, id)
		if err == nil {
			l.cfg.System("Device registered")
			continue
		}
		if ctx.Err() != nil {
			return false
		}
		l.log.Warn("register this device", "err", err, "retry", provisionRetry)
		if !l.pauseAfter(ctx, err, provisionRetry) {
			return false
		}
	}
}

func (l *Link) register(ctx context.Context, id Identity) error {
	if id.Provisioning == "" {
		// Made by hand, or an earlier registration was not noted.
		n, err := l.find(ctx, id, id.Key)
		if err != nil {
			return fmt.Errorf("config.json has no apiKey to register with, and the server does not know deviceApiKey: %w", err)
		}
		return l.cfg.Device.Registered(n)
	}
	body := map[string]any{
		"application": id.Fleet, "uuid": id.UUID, "device_type": id.DeviceType, "api_key": id.Key,
		"supervisor_version": l.cfg.Supervisor, "os_version": l.cfg.OSVersion, "os_variant": l.cfg.OSVariant,
	}
	if l.cfg.MAC != nil {
		body["mac_address"] = l.cfg.MAC()
	}
	_, answer, err := l.call(ctx, http.MethodPost, "/device/register", id.Provisioning, body, nil)
	if statusOf(err) == http.StatusConflict {
		return l.exchange(ctx, id)
	}
	if err != nil {
		return err
	}
	var got struct{ ID int }
	if err := json.Unmarshal(answer, &got); err != nil || got.ID == 0 {
		return errdef.Invalid.Errorf("the server's answer to registration has no id: %.100s", answer)
	}
	return l.cfg.Device.Registered(got.ID)
}

// exchange makes a device that the server knows already known by our key.
func (l *Link) exchange(ctx context.Context, id Identity) error {
	if n, err := l.find(ctx, id, id.Key); err == nil {
		return l.cfg.Device.Registered(n)
	}
	n, err := l.find(ctx, id, id.Provisioning)
	if errors.Is(err, errUnknown) {
		// It is somebody else's: nobody of this fleet sees it.
		return errors.Join(errdef.Conflict.Errorf("the server has a device %s that this fleet does not; taking another identity", id.UUID), l.cfg.Device.Reborn())
	}
	if err != nil {
		return err
	}
	_, _, err = l.call(ctx, http.MethodPost, fmt.Sprintf("/api-key/device/%d/device-key", n), id.Provisioning, map[string]any{"apiKey": id.Key}, nil)
	if err != nil {
		return err
	}
	return l.cfg.Device.Registered(n)
}

var errUnknown = errdef.NotFound.Errorf("the server has no such device")

// find asks for the server's number of this device.
func (l *Link) find(ctx context.Context, id Identity, key string) (int, error) {
	q := "?$select=id&$filter=" + url.PathEscape("uuid eq '"+id.UUID+"'")
	_, answer, err := l.call(ctx, http.MethodGet, "/v7/device"+q, key, nil, nil)
	if err != nil {
		return 0, err
	}
	var got struct{ D []struct{ ID int } }
	if err := json.Unmarshal(answer, &got); err != nil {
		return 0, errdef.Invalid.Errorf("look for the device: %w", err)
	}
	if len(got.D) == 0 {
		return 0, errUnknown
	}
	return got.D[0].ID, nil
}
