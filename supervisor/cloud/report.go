package cloud

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"reflect"
	"time"
)

const (
	reportSpacing  = 10 * time.Second
	metricsSpacing = 300 * time.Second
)

// metrics are fields that change all the time, and in what steps a change
// counts; 0 is any.
var metrics = map[string]float64{
	"cpu_usage": 20, "cpu_temp": 5, "memory_usage": 10,
	"memory_total": 0, "storage_usage": 0, "storage_total": 0, "storage_block_device": 0, "cpu_id": 0, "is_undervolted": 0,
}

// report sends what changed since the last report that was accepted, at most
// every ten seconds, and what the meters say at most every five minutes.
func (l *Link) report(ctx context.Context) {
	var last map[string]any // accepted
	var meters time.Time    // when metrics were sent
	failures := 0
	for {
		wait := metricsSpacing
		cur := l.cfg.Device.Report()
		diff := difference(last, cur, time.Since(meters) >= metricsSpacing)
		if len(diff) > 0 {
			err := l.send(ctx, diff)
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				last, failures = merged(last, diff), 0
				if hasMetrics(diff) {
					meters = time.Now()
				}
			} else {
				failures++
				delay := backOff(failures, l.cfg.Device.Settings().Interval)
				if r, ok := errors.AsType[*refusal](err); ok && r.after > delay {
					delay = r.after
				}
				l.log.Warn("report the current state", "err", err, "retry", delay)
				if !l.pauseAfter(ctx, err, delay) {
					return
				}
				continue
			}
		}
		// Never sooner, however much happens.
		if !pause(ctx, reportSpacing, nil) || !pause(ctx, wait-reportSpacing, l.stirred) {
			return
		}
	}
}

func (l *Link) send(ctx context.Context, diff map[string]any) error {
	_, _, err := l.call(ctx, http.MethodPatch, "/device/v3/state", "", map[string]any{l.cfg.Device.Identity().UUID: diff}, nil)
	return err
}

// difference is what the server does not know yet: fields as a whole, for that
// is how it takes them. Metrics are left out unless they may go.
func difference(last, cur map[string]any, withMetrics bool) map[string]any {
	diff := map[string]any{}
	for k, v := range cur {
		step, metric := metrics[k]
		if metric && !withMetrics && last != nil {
			continue
		}
		if old, known := last[k]; known && same(old, v, step) {
			continue
		}
		diff[k] = v
	}
	return diff
}

func same(a, b any, step float64) bool {
	if step > 0 {
		x, xok := number(a)
		y, yok := number(b)
		if xok && yok {
			return math.Floor(x/step) == math.Floor(y/step)
		}
	}
	return reflect.DeepEqual(a, b)
}

func number(v any) (float64, bool) {
	switch n := v.(type) {
	case int:
		return float64(n), true
	case int64:
		return float64(n), true
	case float64:
		return n, true
	}
	return 0, false
}

func hasMetrics(diff map[string]any) bool {
	for k := range diff {
		if _, ok := metrics[k]; ok {
			return true
		}
	}
	return false
}

// merged is what the server knows after it took diff. It is a copy in depth, for
// the device may go on to change what it gave.
func merged(last, diff map[string]any) map[string]any {
	out := map[string]any{}
	for _, m := range []map[string]any{last, diff} {
		for k, v := range m {
			out[k] = v
		}
	}
	return out
}

// tagSpacing is the least time between two messages about tags.
const tagSpacing = 10 * time.Second

// sendTags sends the device's tags until the server has them.
func (l *Link) sendTags(ctx context.Context) {
	failures := 0
	for {
		wait := l.cfg.Device.Settings().Interval
		tags := l.cfg.Device.Tags()
		if len(tags) > 0 {
			_, _, err := l.call(ctx, http.MethodPatch, "/device/v3/tags", "", map[string]any{l.cfg.Device.Identity().UUID: tags}, nil)
			if err == nil {
				err = l.cfg.Device.Tagged(tags)
			}
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				failures++
				wait = backOff(failures, wait)
				l.log.Warn("send tags", "err", err, "retry", wait)
				if !l.pauseAfter(ctx, err, wait) {
					return
				}
				continue
			}
			failures = 0
		}
		if !pause(ctx, tagSpacing, nil) || !pause(ctx, wait, l.tagged) {
			return
		}
	}
}

// FetchTags asks for the device's tags.
func (l *Link) FetchTags(ctx context.Context) ([]Tag, error) {
	id := l.cfg.Device.Identity()
	if id.ID == 0 {
		return nil, errUnknown
	}
	path := "/v7/device_tag?$select=id,tag_key,value&$filter=device%20eq%20" + jsonNumber(id.ID)
	_, answer, err := l.call(ctx, http.MethodGet, path, "", nil, nil)
	if err != nil {
		return nil, err
	}
	var got struct {
		D []struct {
			ID    int
			Name  string `json:"tag_key"`
			Value string
		}
	}
	if err := json.Unmarshal(answer, &got); err != nil {
		return nil, err
	}
	out := []Tag{}
	for _, t := range got.D {
		out = append(out, Tag{t.ID, t.Name, t.Value})
	}
	return out, nil
}

// A Tag is one of the device's.
type Tag struct {
	ID    int    `json:"id"`
	Name  string `json:"name"`
	Value string `json:"value"`
}

func jsonNumber(n int) string {
	b, _ := json.Marshal(n) // cannot fail
	return string(b)
}
