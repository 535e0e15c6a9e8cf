package election

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Term numbers a reign. It grows by one at every takeover and never repeats within a store's lineage. Zero means
// that nobody has reigned yet.
type Term uint64

// Version is the store's compare-and-swap token of one key (etcd: mod revision; Consul: modify index).
// Zero means that the key is absent. Versions of different keys can't be compared.
type Version uint64

// LeaseID names a lease in the store. Every reign has a lease of its own, so the lease that the role key is bound to
// tells whose reign it is.
type LeaseID string

// State says what a sidecar is doing.
type State string

// The states of a sidecar.
const (
	StateStarting State = "starting" // holds the lease; fencing, or starting its controller
	StateServing  State = "serving"  // holds the lease; the controller's startup port answers
	StateStopping State = "stopping" // holds the lease; stopping its controller
	StateReady    State = "ready"    // passive and fit to take over
	StateUnfit    State = "unfit"    // passive and not fit to take over
	StateYielding State = "yielding" // gave the lease up; waiting for another to become active
	StatePaused   State = "paused"   // passive while the cluster is paused
	StateFailed   State = "failed"   // could not confirm that its controller is gone; keeps the lease
)

// Role is what the cluster sees of a controller.
type Role string

// The two roles.
const (
	RoleActive  Role = "active"
	RolePassive Role = "passive"
)

// Active is the record in the role key: who holds the lease, and how far it has got. Agents and proxies
// follow it only when State is [StateServing].
type Active struct {
	Controller  string    `json:"controller"`
	Term        Term      `json:"term"`
	State       State     `json:"state"`
	URL         string    `json:"url"`
	API         string    `json:"api,omitempty"` // base URL of the sidecar's REST interface, if it listens
	Since       time.Time `json:"since"`         // when State was entered; for people, never for decisions
	Reason      string    `json:"reason"`        // why this reign began
	Incarnation string    `json:"incarnation"`   // unique per start of a sidecar
}

// Serving reports whether a is to be followed.
func (a *Active) Serving() bool { return a != nil && a.State == StateServing }

// Encode returns a as one line of JSON.
func (a Active) Encode() []byte { return mustJSON(a) }

// DecodeActive reads a role key. What comes from the store is data: a record without a controller or a term is
// refused.
func DecodeActive(b []byte) (Active, error) {
	var a Active
	if err := json.Unmarshal(b, &a); err != nil {
		return Active{}, fmt.Errorf("cannot read the role key: %v", err)
	}
	if a.Controller == "" || a.Term == 0 {
		return Active{}, fmt.Errorf("cannot read the role key: no controller or no term in %.200q", b)
	}
	return a, nil
}

// Breadcrumb is the permanent record behind the term counter: what the last reign was and whether it ended clean. It
// outlives every lease, so that a taker knows what it may have to wait out.
type Breadcrumb struct {
	Term        Term
	Clean       bool          // the last reign was undone completely before its lease was released
	Controller  string        // who holds or held the term
	Incarnation string        // which start of it
	Validity    time.Duration // V of the holder: how long it may act after its last renewal was sent
	Reason      string        // why the reign ended, if it ended clean; else why it began
}

// Encode returns the value of the term key: the term, a word, and the facts, in plain text that begins with the
// integer: "7 clean controller=ctl-a incarnation=… validity=4s reason=switchover (ana)". The reason goes to the end.
func (b Breadcrumb) Encode() []byte {
	word := "held"
	if b.Clean {
		word = "clean"
	}
	return fmt.Appendf(nil, "%d %s controller=%s incarnation=%s validity=%s reason=%s",
		b.Term, word, b.Controller, b.Incarnation, b.Validity, strings.Join(strings.Fields(b.Reason), " "))
}

// DecodeBreadcrumb reads a term key. A key with only an integer (set by hand) is accepted and is not clean.
func DecodeBreadcrumb(value []byte) (Breadcrumb, error) {
	facts, reason, _ := strings.Cut(string(value), " reason=")
	fields := strings.Fields(facts)
	if len(fields) == 0 {
		return Breadcrumb{}, fmt.Errorf("cannot read the term key: it is empty")
	}
	n, err := strconv.ParseUint(fields[0], 10, 63)
	if err != nil {
		return Breadcrumb{}, fmt.Errorf("cannot read the term key: %.60q is not a term", fields[0])
	}
	b := Breadcrumb{Term: Term(n), Reason: reason}
	for _, f := range fields[1:] {
		key, val, _ := strings.Cut(f, "=")
		switch key {
		case "clean":
			b.Clean = true
		case "controller":
			b.Controller = val
		case "incarnation":
			b.Incarnation = val
		case "validity":
			if b.Validity, err = time.ParseDuration(val); err != nil || b.Validity < 0 {
				return Breadcrumb{}, fmt.Errorf("cannot read the term key: validity %.40q is not a duration", val)
			}
		}
	}
	return b, nil
}

// Controller is the status that a sidecar keeps about itself under controllers/<name>, bound to its presence lease.
type Controller struct {
	Name        string    `json:"name"`
	Incarnation string    `json:"incarnation"`
	Role        Role      `json:"role"`
	State       State     `json:"state"`
	Health      string    `json:"health"`           // "ok", "-" or what is wrong, for people
	Reason      string    `json:"reason,omitempty"` // why State is what it is
	Priority    int       `json:"priority"`
	NoFailover  bool      `json:"nofailover,omitempty"` // never a candidate by itself
	URL         string    `json:"url"`
	API         string    `json:"api,omitempty"`
	Version     string    `json:"version"`
	Host        string    `json:"host"`
	PID         int       `json:"pid"`
	Since       time.Time `json:"since"`
	LeaseTTL    string    `json:"lease_ttl,omitempty"`
	Failure     *Failure  `json:"failure,omitempty"` // of its last reign; gone once it serves again
}

// Heir is the word of a passive that it is ready to be handed the reign of After, under heir, bound to the lease that its own
// reign would be bound to. The first to write it is the heir; it goes when the lease does, and with every claim.
type Heir struct {
	Controller  string  `json:"controller"`
	Incarnation string  `json:"incarnation"`
	After       Term    `json:"after"`
	Lease       LeaseID `json:"lease"`
	URL         string  `json:"url"`
	API         string  `json:"api,omitempty"`
	Validity    string  `json:"validity"`
	Beat        bool    `json:"beat,omitempty"`
}

// Encode returns h as one line of JSON.
func (h Heir) Encode() []byte { return mustJSON(h) }

// DecodeHeir reads a heir key. What comes from the store is data: one that says less than what a reign needs is refused.
func DecodeHeir(b []byte) (Heir, error) {
	var h Heir
	if err := json.Unmarshal(b, &h); err != nil {
		return Heir{}, fmt.Errorf("cannot read the heir key: %v", err)
	}
	if d, err := time.ParseDuration(h.Validity); err != nil || d <= 0 || h.Controller == "" || h.Incarnation == "" || h.Lease == "" || h.After == 0 {
		return Heir{}, fmt.Errorf("cannot read the heir key: something is missing in %.200q", b)
	}
	return h, nil
}

// Failure is how a reign failed.
type Failure struct {
	At   time.Time `json:"at"`
	Term Term      `json:"term"`
	Why  string    `json:"why"`
}

// Fit reports whether c is passive and able to take over.
func (c Controller) Fit() bool { return c.State == StateReady && !c.NoFailover }

// Encode returns c as one line of JSON.
func (c Controller) Encode() []byte { return mustJSON(c) }

// Request asks the cluster for a planned move. It is written by an operator and deleted by whoever carried it out or
// found it void. Its life is counted by each observer from when it first saw the request; no clock is shared.
type Request struct {
	ID     string        `json:"id"`
	Op     string        `json:"op"`           // "switchover"
	To     string        `json:"to,omitempty"` // the target; empty: any fit passive
	By     string        `json:"by"`
	Reason string        `json:"reason,omitempty"`
	Term   Term          `json:"term"` // the reign to be ended; a request for another term is void
	For    time.Duration `json:"for"`  // only To may take over for this long after the release
}

// Encode returns r as one line of JSON.
func (r Request) Encode() []byte { return mustJSON(r) }

// Pause tells every sidecar of the cluster to keep things as they are: leases are renewed, nothing fails over.
type Pause struct {
	By     string    `json:"by"`
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since"`
}

// History is what is kept of one reign under history/<term>: how it began, written when it began to serve, and how it
// ended, added by its own holder if it could.
type History struct {
	Term   Term      `json:"term"`
	When   time.Time `json:"when"` // when the reign's controller was serving
	From   string    `json:"from"` // who reigned before; empty for the first
	To     string    `json:"to"`
	Reason string    `json:"reason"`
	Clean  bool      `json:"clean"`     // the reign before ended clean
	Wait   Millis    `json:"wait_ms"`   // waited for the old holder's validity to be over
	Fence  Millis    `json:"fence_ms"`  // begin, drain and open at the repository
	Start  Millis    `json:"start_ms"`  // process started → startup port answers
	Outage Millis    `json:"outage_ms"` // see OutageAtMost
	// OutageAtMost: the old holder vanished without a word, so Outage counts from the earliest moment at which it may
	// have stopped. Otherwise Outage counts from when the old holder was seen to stop serving.
	OutageAtMost bool `json:"outage_at_most,omitempty"`

	Ended     time.Time `json:"ended,omitzero"`
	EndedBy   string    `json:"ended_by,omitempty"`      // why it ended
	EndDetect Millis    `json:"end_detect_ms,omitempty"` // first sign of the fault → stop begun
	EndStop   Millis    `json:"end_stop_ms,omitempty"`   // stop begun → tree confirmed gone
}

// HistoryKey returns the key of a reign's [History].
func HistoryKey(t Term) string { return fmt.Sprintf("history/%010d", t) }

// Encode returns h as one line of JSON.
func (h History) Encode() []byte { return mustJSON(h) }

// Millis is a duration in JSON as a number of milliseconds; negative means not known.
type Millis float64

// ToMillis converts d.
func ToMillis(d time.Duration) Millis { return Millis(float64(d) / float64(time.Millisecond)) }

// Agent is the status that an agentwatch keeps under agents/<name>, bound to its presence lease.
type Agent struct {
	Name         string    `json:"name"`
	Follows      string    `json:"follows"` // controller it is pointed at; empty for none
	Term         Term      `json:"term"`
	State        string    `json:"state"` // waiting running restarting unreachable stopped
	Reason       string    `json:"reason,omitempty"`
	Restarts     int       `json:"restarts"`
	LastSwitchMS Millis    `json:"last_switch_ms"` // role key seen → agent started, of the last switch
	Since        time.Time `json:"since"`
	Host         string    `json:"host"`
	PID          int       `json:"pid"`

	Watch AgentWatch `json:"watch,omitzero"`
}

// AgentWatch is the process that keeps an agent.
type AgentWatch struct {
	Incarnation string `json:"incarnation"`
	Home        string `json:"home"` // its host, boot and PID namespace, in which PID means something
	PID         int    `json:"pid"`
}

// Encode returns a as one line of JSON.
func (a Agent) Encode() []byte { return mustJSON(a) }

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only records of this file come here; none holds a value that JSON can't say
	}
	return b
}

// DecodeController reads a status. What comes from the store is data: one without a name or an incarnation is refused.
func DecodeController(b []byte) (Controller, error) {
	var c Controller
	if err := json.Unmarshal(b, &c); err != nil {
		return Controller{}, fmt.Errorf("cannot read the status of a controller: %v", err)
	}
	if c.Name == "" || c.Incarnation == "" {
		return Controller{}, fmt.Errorf("cannot read the status of a controller: no name or no incarnation in %.200q", b)
	}
	return c, nil
}
