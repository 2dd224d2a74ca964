package state

import (
	"encoding/json"
	"fmt"
)

// A Target is the last accepted target state, in the bytes it came in.
type Target struct {
	Version int             `json:"version"`
	Source  string          `json:"source"`         // local, or the fleet server's address
	Body    json.RawMessage `json:"body,omitempty"` // null would come back as four letters
}

// Sources that are no server.
const (
	SourceLocal   = "local"   // posted to this device
	SourcePreload = "preload" // came with the medium
)

// Target is the last accepted target state; its Body is nil if there is none.
func (s *Store) Target() Target {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.target
}

// SetTarget remembers a target state.
func (s *Store) SetTarget(source string, body []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := Target{version, source, body}
	if err := s.write("target.json", t); err != nil {
		return fmt.Errorf("store target state: %w", err)
	}
	s.target = t
	return nil
}

// Local is the target posted to this device while it is managed; its Body is
// nil if there is none.
func (s *Store) Local() Target {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.local
}

// SetLocal remembers such a target; nil forgets it.
func (s *Store) SetLocal(body []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := Target{version, SourceLocal, body}
	if body == nil && s.local.Body == nil {
		return nil
	}
	if err := s.write("local.json", t); err != nil {
		return fmt.Errorf("store local target state: %w", err)
	}
	s.local = t
	return nil
}

// Held are applications that run in an earlier release than the target's, by
// UUID, as a target of version 3 has them.
func (s *Store) Held() map[string]json.RawMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	var apps map[string]json.RawMessage
	if json.Unmarshal(s.held.Body, &apps) != nil { // empty, or not ours
		return nil
	}
	return apps
}

// SetHeld remembers them.
func (s *Store) SetHeld(apps map[string]json.RawMessage) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(apps) == 0 && s.held.Body == nil {
		return nil
	}
	t := Target{Version: version}
	if len(apps) > 0 {
		body, err := json.Marshal(apps)
		if err != nil {
			return err
		}
		t.Body = body
	}
	if err := s.write("held.json", t); err != nil {
		return fmt.Errorf("store applications that stay as they are: %w", err)
	}
	s.held = t
	return nil
}

// Good is the last target that worked, nil if there is none.
func (s *Store) Good() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.good.Body
}

// SetGood remembers a target that works.
func (s *Store) SetGood(body []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := Target{version, "", body}
	if err := s.write("good.json", t); err != nil {
		return err
	}
	s.good = t
	return nil
}
