package cloud

import (
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestADeviceIsIntroducedOnce(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status []int // of the answers about variables
		want   []string
		named  bool
	}{
		{"at-once", []int{201, 201}, []string{`{"device":7,"name":"RESIN_A","value":"1"}`, `{"device":7,"name":"RESIN_C","value":"3"}`}, true},
		{"somebody-was-faster", []int{409, 201}, []string{`{"device":7,"name":"RESIN_A","value":"1"}`, `{"device":7,"name":"RESIN_C","value":"3"}`}, true},
		{"after-trouble", []int{503, 201, 201}, []string{`{"device":7,"name":"RESIN_A","value":"1"}`, `{"device":7,"name":"RESIN_A","value":"1"}`, `{"device":7,"name":"RESIN_C","value":"3"}`}, true},
		{"a-server-that-refuses", []int{404}, []string{`{"device":7,"name":"RESIN_A","value":"1"}`}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, d := newServer(), newDevice()
				d.intro = &Introduction{Variables: map[string]string{"A": "1", "B": "2", "C": "3"}, Name: "porch"}
				status := slices.Clone(tt.status)
				s.answer = func(r *http.Request, _ string) (int, string, http.Header) {
					if r.URL.Path == "/v7/device_config_variable" {
						n := status[0]
						status = status[1:]
						return n, "", nil
					}
					return 200, `{"abcd":{"config":{"BALENA_B":"5"}}}`, nil
				}
				link(t, s, d)
				time.Sleep(time.Hour)
				s.mu.Lock()
				defer s.mu.Unlock()
				if got := s.bodies["/v7/device_config_variable"]; !slices.Equal(got, tt.want) {
					t.Errorf("variables posted: %q, want %q", got, tt.want)
				}
				if got := s.bodies["/v7/device(7)"]; tt.named != slices.Equal(got, []string{`{"device_name":"porch"}`}) {
					t.Errorf("device changed: %q, want its name: %v", got, tt.named)
				}
				if d.intro != nil {
					t.Error("the device was not told that it is known")
				}
			})
		})
	}
}
