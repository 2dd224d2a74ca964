package supervisor

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/minke-os/minke/supervisor/model"
	"github.com/minke-os/minke/supervisor/plan"
)

// RollbackLabel is a service's label with a time in milliseconds: so long a new
// target may take to work. The device variable SUPERVISOR_ROLLBACK_TIMEOUT says
// the same for all. Without either nothing is undone.
const RollbackLabel = "io.minke.rollback-timeout"

// A trial is a new target that has still to show that it works. Time counts
// from when its images are here.
type trial struct {
	body    []byte
	limit   time.Duration
	started time.Time // zero while something is downloaded, a lock holds it, or a reboot is to come
	lost    bool      // it does not work, and there is nothing to go back to
}

func rollbackLimit(t model.Target) time.Duration {
	ms := numeric(t.Config, "SUPERVISOR_ROLLBACK_TIMEOUT", 0)
	for _, app := range t.Apps {
		for _, svc := range app.Services {
			n, _ := model.Int(svc.Labels[RollbackLabel])
			ms = max(ms, n)
		}
	}
	return time.Duration(ms) * time.Millisecond
}

// newTrial is the trial of a target that is about to be adopted, nil for one
// that has shown that it works or that nobody wants tried. What was reached
// before it is then the target to go back to.
func (s *Supervisor) newTrial(target model.Target, body []byte) (*trial, error) {
	limit := rollbackLimit(target)
	s.mu.Lock()
	before, running, reached := s.body, s.trial, !s.applying && s.trial == nil
	s.mu.Unlock()
	switch {
	case limit == 0 || hashOf(s.store.Good()) == hashOf(body):
		return nil, nil
	case hashOf(body) == hashOf(before):
		return running, nil
	case before != nil && reached:
		if err := s.store.SetGood(before); err != nil {
			return nil, fmt.Errorf("remember the target to go back to: %w", err)
		}
	}
	return &trial{body: body, limit: limit}, nil
}

// onTrial reports whether the target has still to show that it works.
func (s *Supervisor) onTrial() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trial != nil
}

// hashOf tells targets apart. Blanks do not count: what is stored has none.
func hashOf(body []byte) string {
	var b bytes.Buffer
	if err := json.Compact(&b, body); err != nil { // no target yet
		return ""
	}
	sum := sha256.Sum256(b.Bytes())
	return hex.EncodeToString(sum[:])
}

// judge watches a trial. A target that works until its time is up is the one to
// go back to from then on; one that does not is undone. It says when to look
// again.
func (s *Supervisor) judge(want plan.Want, cur plan.Current, steps []plan.Step) time.Duration {
	s.mu.Lock()
	t := s.trial
	if t == nil || t.lost || want.Generation != s.want.Generation {
		s.mu.Unlock()
		return never
	}
	locked := slices.ContainsFunc(steps, func(st plan.Step) bool { return st.Kind == plan.TakeLock || st.Kind == plan.Reboot })
	if locked || len(s.fetching) > 0 || !allHere(want, cur) {
		t.started = time.Time{}
		s.mu.Unlock()
		return never // the end of a download is news, and a lock is tried again
	}
	if t.started.IsZero() {
		t.started = time.Now()
	}
	left := t.limit - time.Since(t.started)
	s.mu.Unlock()

	ailments := plan.Judge(want, cur, steps)
	hopeless := false
	for _, a := range ailments {
		hopeless = hopeless || a.Hopeless
	}
	switch {
	case hopeless || left <= 0 && len(ailments) > 0:
		s.undo(t, ailments)
		return time.Millisecond
	case left <= 0:
		s.endTrial(t)
		if err := s.store.SetGood(t.body); err != nil {
			s.log.Error("remember the target that works", "err", err)
		}
		return never
	}
	return min(left, time.Second)
}

func allHere(want plan.Want, cur plan.Current) bool {
	for _, ref := range images(want) {
		if cur.Images[ref] == "" {
			return false
		}
	}
	return true
}

func (s *Supervisor) endTrial(t *trial) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trial == t {
		s.trial = nil
	}
}

// undo goes back to the last target that worked. The one that did not is not
// tried again until there is another.
func (s *Supervisor) undo(t *trial, ailments []plan.Ailment) {
	var why []string
	for _, a := range ailments {
		why = append(why, a.String())
	}
	reason := strings.Join(why, ", ")
	good := s.store.Good()
	if good == nil || hashOf(good) == hashOf(t.body) {
		s.log.Error("the new target does not work, and there is none to go back to", "reason", reason)
		s.hub.System("The new release does not work, and there is none to go back to: " + reason)
		s.mu.Lock()
		t.lost = true
		s.mu.Unlock()
		return
	}
	s.endTrial(t)
	if err := s.store.SetRejected(hashOf(t.body), reason); err != nil {
		s.log.Error("remember the target that does not work", "err", err)
		return
	}
	s.log.Warn("rolling back", "reason", reason)
	s.hub.System(fmt.Sprintf("Rolling back to the release before, because %s", reason))
	if err := s.adoptAny(good); err != nil {
		s.log.Error("roll back", "err", err)
		return
	}
	s.poke()
}

// adoptAny takes up a target of whatever source.
func (s *Supervisor) adoptAny(body []byte) error {
	var form struct{ Local json.RawMessage }
	if json.Unmarshal(body, &form) == nil && form.Local != nil {
		return s.adoptLocal(body)
	}
	return s.adoptCloud(body)
}

// undone says why the stored target is not the one that runs, "" if it is.
func (s *Supervisor) undone() string {
	hash, reason := s.store.Rejected()
	if hash == "" || hash != hashOf(s.newest()) {
		return ""
	}
	return reason
}

// newest is the body of the target that came last.
func (s *Supervisor) newest() []byte {
	if local := s.store.Local(); local.Body != nil {
		return local.Body
	}
	return s.store.Target().Body
}
