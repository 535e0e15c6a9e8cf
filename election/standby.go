package election

import (
	"encoding/json"
	"fmt"
	"time"
)

// Standbys is the value of the standby key: the controllers that must not become active, by name. It
// never ends a reign: who holds the lease keeps it, and does not get it again.
type Standbys map[string]Standby

// Standby is an operator's word that a controller must not become active.
type Standby struct {
	By     string    `json:"by"`
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since"`
	Ban    bool      `json:"ban,omitempty"` // not even if a failover to it is forced
	// For is how long it is to last; zero: until an operator ends it. Every observer counts from when
	// it first saw it.
	For time.Duration `json:"for,omitempty"`
}

// Encode returns s as one line of JSON.
func (s Standbys) Encode() []byte { return mustJSON(s) }

// DecodeStandbys decodes a standby key.
func DecodeStandbys(b []byte) (s Standbys, err error) {
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, err
	}
	return s, nil
}

// Words describes s for people: who wants it, why, and what ends it.
func (s Standby) Words(name string) string {
	what, end := "on standby, by", fmt.Sprintf("`tanist standby %s off`", name)
	if s.Ban {
		what, end = "banned by", fmt.Sprintf("`tanist unban %s`", name)
	}
	if s.For > 0 {
		end = fmt.Sprintf("%s ends that before %v are over", end, s.For)
	} else {
		end += " ends that"
	}
	because := ""
	if s.Reason != "" {
		because = ": " + s.Reason
	}
	return fmt.Sprintf("%s %s%s; %s", what, or(s.By, "unknown"), because, end)
}

// standsBy returns why a controller must not become active, if an operator wants so. force is an
// operator's request to take over all the same, which does not lift a ban.
func (s Snapshot) standsBy(name string, force bool) (why string, on bool) {
	by, on := s.Standbys[name]
	if !on || force && !by.Ban {
		return "", false
	}
	return fmt.Sprintf("%s is %s", name, by.Words(name)), true
}
