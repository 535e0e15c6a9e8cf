package election

import (
	"encoding/json"
	"fmt"
	"time"
)

// Audit is the record of something that an operator asked for, under audit/. The latest ones are
// kept. It is for people: nothing depends on it, and everybody who may write to the store can change
// it.
type Audit struct {
	ID      string    `json:"id"`
	At      time.Time `json:"at"` // by the clock of the process that carried it out
	By      string    `json:"by"`
	Role    string    `json:"role,omitempty"` // over the REST interface; empty: by command
	Via     string    `json:"via"`            // "command", or how the client was recognized: "unix socket", "token", "certificate"
	On      string    `json:"on,omitempty"`   // the host
	Command string    `json:"command"`        // the equivalent command
	Outcome string    `json:"outcome"`        // [OutcomeOpen], [OutcomeDone], or why it failed
	Ended   time.Time `json:"ended,omitzero"`
}

// Outcomes of an [Audit] that has not failed.
const (
	OutcomeOpen = "begun" // or the process that followed it has ended
	OutcomeDone = "done"
)

// Encode returns a as one line of JSON.
func (a Audit) Encode() []byte { return mustJSON(a) }

// DecodeAudit decodes a record. The store's content is untrusted: a record without an ID or a command
// is refused.
func DecodeAudit(b []byte) (a Audit, err error) {
	if err := json.Unmarshal(b, &a); err != nil {
		return Audit{}, fmt.Errorf("cannot read the record of an operation: %v", err)
	}
	if a.ID == "" || a.Command == "" {
		return Audit{}, fmt.Errorf("cannot read the record of an operation: no id or no command in %.200q", b)
	}
	return a, nil
}
