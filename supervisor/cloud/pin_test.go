package cloud

import (
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

const (
	findRelease = "GET /v7/release"
	pinDevice   = "PATCH /v7/device(7)"
)

func TestTheReleaseItCameWithIsNamedBeforeAnotherIsAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := newServer(), newDevice()
		d.fleet, d.commit = 5, "abc'd"
		filter := ""
		s.answer = func(r *http.Request, _ string) (int, string, http.Header) {
			switch {
			case r.URL.Path == "/v7/release" && time.Since(s.start) < 20*time.Second:
				return 500, "", nil
			case r.URL.Path == "/v7/release":
				filter = r.URL.Query().Get("$filter")
				return 200, `{"d":[{"id":99}]}`, nil
			}
			return 200, `{"abcd":{}}`, nil
		}
		link(t, s, d)
		time.Sleep(5 * time.Minute)
		if want := "(belongs_to__application eq 5) and (commit eq 'abc''d') and (status eq 'success')"; filter != want {
			t.Errorf("filter = %s, want %s", filter, want)
		}
		if got := s.at(findRelease); !slices.Equal(got, []int{0, 15, 45}) {
			t.Errorf("the release was looked for at %v s, want 0, 15 and 45", got)
		}
		if got := s.bodies["/v7/device(7)"]; !slices.Equal(got, []string{`{"is_pinned_on__release":99}`}) || !slices.Equal(s.at(pinDevice), []int{45}) {
			t.Errorf("the device was changed by %q at %v s", got, s.at(pinDevice))
		}
		if got := s.at(statePath); len(got) != 1 || got[0] != 45 {
			t.Errorf("polls at %v s, want one once the server knows", got)
		}
		if _, commit := d.Pin(); commit != "" {
			t.Errorf("%s is still to be named", commit)
		}
	})
}

func TestAReleaseThatTheServerDoesNotHaveHoldsNothingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := newServer(), newDevice()
		d.fleet, d.commit = 5, "gone"
		s.answer = func(r *http.Request, _ string) (int, string, http.Header) { return 200, `{"d":[]}`, nil }
		link(t, s, d)
		time.Sleep(time.Minute)
		if len(s.at(pinDevice)) != 0 || len(s.at(statePath)) != 1 {
			t.Errorf("%d pins and %d polls, want none and one", len(s.at(pinDevice)), len(s.at(statePath)))
		}
	})
}
