package election

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Term numbers a reign. It grows by one at every takeover and never repeats in the history of a
// store. Zero means that nobody has reigned yet.
type Term uint64

// highestByHand is the highest term that is accepted from a value that no reign has written, or
// that may be forged. It leaves room below [MaxTerm] for the terms that follow.
const highestByHand Term = 1 << 52

// Version is the store's compare-and-swap token of one key (etcd: mod revision; Consul: modify
// index). Zero means that the key is absent. Versions of different keys are not comparable.
type Version uint64

// LeaseID identifies a lease in the store. Every reign has a lease of its own, so the lease of the
// role key identifies the reign.
type LeaseID string

// State is what a sidecar is doing.
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
	StateStandby  State = "standby"  // passive, and an operator does not want it to become active
	StateUnlisted State = "unlisted" // passive, and the last holder's list of who may take over leaves it out
	StateFailed   State = "failed"   // could not confirm that its controller is gone; keeps the lease
)

// Role is a controller's role in the cluster.
type Role string

// The two roles.
const (
	RoleActive  Role = "active"
	RolePassive Role = "passive"
)

// Active is the record in the role key: who holds the lease, and in which state. Agents and proxies
// follow it only if State is [StateServing].
type Active struct {
	Controller  string    `json:"controller"`
	Term        Term      `json:"term"`
	State       State     `json:"state"`
	URL         string    `json:"url"`
	URLs        URLs      `json:"urls,omitempty"`  // more ports of the same program, by name
	API         string    `json:"api,omitempty"`   // base URL of the sidecar's REST interface, if it listens
	Since       time.Time `json:"since"`           // when State was entered; for people, never for decisions
	Reason      string    `json:"reason"`          // why the reign began
	Incarnation string    `json:"incarnation"`     // of the process that claimed; unique per process
	Nonce       string    `json:"nonce,omitempty"` // unique per reign, whichever process continues it
}

// Serving reports whether a is to be followed.
func (a *Active) Serving() bool { return a != nil && a.State == StateServing }

// Encode returns a as one line of JSON.
func (a Active) Encode() []byte { return mustJSON(a) }

// DecodeActive decodes a role key. The store's content is untrusted: a record without a controller
// or a term is refused.
func DecodeActive(b []byte) (Active, error) {
	var a Active
	if err := json.Unmarshal(b, &a); err != nil {
		return Active{}, fmt.Errorf("cannot read the role key: %v", err)
	}
	if a.Controller == "" || a.Term == 0 || a.Term > MaxTerm {
		return Active{}, fmt.Errorf("cannot read the role key: no controller or no term up to %d in %.200q", MaxTerm, b)
	}
	return a, nil
}

// Mode is the kind of evidence that moves the validity of a reign.
type Mode string

// ModeStore means that renewals that the store acknowledges move the holder's validity.
const ModeStore Mode = "store"

// Breadcrumb is the term record: the permanent record of the term counter. It has the holder and
// the timing of the last reign, whether it ended clean, and the debt of earlier reigns. It outlives
// every lease, so that a taker knows what it must wait out.
type Breadcrumb struct {
	Term        Term   // the counter: every later reign has a higher one
	Reign       Term   // the reign that the rest describes, if not Term: the counter was raised since
	Clean       bool   // that reign was undone completely before its lease was released
	Controller  string // the present or last holder
	Incarnation string // the process that claimed
	Nonce       string // unique per reign

	// The timing of the reign. A process that resumes it uses these values, whatever its own
	// configuration.
	Validity time.Duration // V of the holder: how long it may act after its last renewal was sent
	TTL      time.Duration // of its lease; zero in records of older versions
	Beat     bool          // it writes the beat key
	Mode     Mode          // empty in records of older versions, and if written by hand

	// Heirs are the only ones who may take over unless the reign ended clean, in order, separated
	// by commas. Empty: everybody may. See [StoreLossFailsafe].
	Heirs string

	// Debt is how long a holder before this reign may still act. Each reader counts it from when it
	// first saw this version of the record. Nothing is started or handed over while it is open, and
	// every later record passes on the remainder.
	Debt   time.Duration
	Reason string // why the reign ended, if clean; else why it began
}

// Of returns the term of the reign that b describes.
func (b Breadcrumb) Of() Term {
	if b.Reign != 0 {
		return b.Reign
	}
	return b.Term
}

// Encode returns the value of the term key: the term, a word, and the facts, in plain text that
// begins with the integer:
//
//	7 clean controller=ctl-a incarnation=… validity=4s ttl=5s mode=store nonce=… reason=switchover (ana)
//
// The reason is the last fact. The previous version knows neither debt nor the word released: it
// waits out the validity unless the word is clean. So with an open debt the word is never clean,
// and the validity is at least the debt.
func (b Breadcrumb) Encode() []byte {
	word, validity, debt := "held", b.Validity, wholeMillis(b.Debt)
	if b.Clean && debt == 0 {
		word = "clean"
	}
	if debt > validity {
		validity = debt
	}
	v := fmt.Appendf(nil, "%d %s controller=%s incarnation=%s validity=%s", b.Term, word, b.Controller, b.Incarnation, validity)
	field := func(write bool, format string, value any) {
		if write {
			v = fmt.Appendf(v, format, value)
		}
	}
	field(validity != b.Validity, " v=%v", b.Validity)
	field(b.Reign != 0 && b.Reign != b.Term, " reign=%d", b.Reign)
	field(b.TTL != 0, " ttl=%v", b.TTL)
	field(b.Beat, " beat=%v", b.Beat)
	field(b.Mode != "", " mode=%s", b.Mode)
	field(b.Heirs != "", " heirs=%s", b.Heirs)
	field(b.Nonce != "", " nonce=%s", b.Nonce)
	field(debt != 0, " debt=%v", debt)
	field(b.Clean && debt != 0, " released=%v", true)
	return fmt.Appendf(v, " reason=%s", strings.Join(strings.Fields(b.Reason), " "))
}

// wholeMillis rounds up, so that no part of a debt is lost.
func wholeMillis(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return (d + time.Millisecond - 1).Truncate(time.Millisecond)
}

// DecodeBreadcrumb decodes a term key. A key with only an integer (set by hand) is accepted, and is
// not clean.
func DecodeBreadcrumb(value []byte) (Breadcrumb, error) {
	facts, reason, _ := strings.Cut(string(value), " reason=")
	fields := strings.Fields(facts)
	if len(fields) == 0 {
		return Breadcrumb{}, errors.New("cannot read the term key: it is empty")
	}
	term, err := parseTerm(fields[0])
	if err != nil {
		return Breadcrumb{}, fmt.Errorf("cannot read the term key: %v", err)
	}
	b := Breadcrumb{Term: term, Reason: reason}
	v := time.Duration(-1)
	for _, f := range fields[1:] {
		key, val, _ := strings.Cut(f, "=")
		switch key {
		case "clean", "released":
			b.Clean = true
		case "controller":
			b.Controller = val
		case "incarnation":
			b.Incarnation = val
		case "nonce":
			b.Nonce = val
		case "mode":
			b.Mode = Mode(val)
		case "heirs":
			b.Heirs = val
		case "beat":
			b.Beat = val == "true"
		case "reign":
			b.Reign, err = parseTerm(val)
		case "validity":
			b.Validity, err = parseDuration(val)
		case "v":
			v, err = parseDuration(val)
		case "ttl":
			b.TTL, err = parseDuration(val)
		case "debt":
			b.Debt, err = parseDuration(val)
		}
		if err != nil {
			return Breadcrumb{}, fmt.Errorf("cannot read the term key: %s: %v", key, err)
		}
	}
	if v >= 0 {
		b.Validity = v
	}
	if b.Controller == "" && b.Term > highestByHand {
		return Breadcrumb{}, fmt.Errorf("cannot read the term key: %d is more than the %d that a term may be set to by hand", b.Term, highestByHand)
	}
	return b, nil
}

func parseTerm(s string) (Term, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || Term(n) > MaxTerm {
		return 0, fmt.Errorf("%.60q is not a term: it must be a number up to %d", s, MaxTerm)
	}
	return Term(n), nil
}

// longestDuration bounds how long a record can make anybody wait.
const longestDuration = time.Hour

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d > longestDuration {
		return 0, fmt.Errorf("%.40q is not a duration of up to %v", s, longestDuration)
	}
	return d, nil
}

// Controller is the status that a sidecar keeps under controllers/<name>, bound to its presence
// lease.
type Controller struct {
	Name        string    `json:"name"`
	Incarnation string    `json:"incarnation"`
	Role        Role      `json:"role"`
	State       State     `json:"state"`
	Health      string    `json:"health"`           // "ok", "-" or what is wrong, for people
	Reason      string    `json:"reason,omitempty"` // why it is in State
	Priority    int       `json:"priority"`
	NoFailover  bool      `json:"nofailover,omitempty"` // never a candidate by itself
	URL         string    `json:"url"`
	API         string    `json:"api,omitempty"`
	Version     string    `json:"version"`
	Host        string    `json:"host"`
	PID         int       `json:"pid"`
	Since       time.Time `json:"since"`
	LeaseTTL    string    `json:"lease_ttl,omitempty"`
	Failure     *Failure  `json:"failure,omitempty"` // of its last reign; removed once it serves again
	Cooling     bool      `json:"cooling,omitempty"` // it failed recently, and does not take over by itself yet
	// Outlived is a term above the counter, if it has seen one and nobody can act with it any more.
	// The holder raises the counter to it, because a passive does not offer to take over from a
	// counter that has gone back.
	Outlived Term `json:"outlived,omitempty"`

	VirtualIPs []VirtualIP `json:"virtual_ips,omitempty"` // the active's addresses, as they are on this host
}

// Heir is a passive's offer to be handed the reign that follows After. It is in the heir key, bound
// to the lease of its future reign. The first to write it is the heir. It disappears with the
// lease, and with every claim.
type Heir struct {
	Controller  string  `json:"controller"`
	Incarnation string  `json:"incarnation"`
	After       Term    `json:"after"`
	Lease       LeaseID `json:"lease"`
	URL         string  `json:"url"`
	URLs        URLs    `json:"urls,omitempty"`
	API         string  `json:"api,omitempty"`
	Validity    string  `json:"validity"`
	Beat        bool    `json:"beat,omitempty"`
	TTL         string  `json:"ttl,omitempty"`
	Nonce       string  `json:"nonce,omitempty"` // of the future reign
	// Request is the ID of the request that it was made for; empty: there was none, or an older
	// version made it.
	Request string `json:"request,omitempty"`
}

// meets reports whether h is an offer for the move that r requests of the reign term. An offer for
// an earlier request shows nothing: its maker may have died since, and the key outlives it.
func (h *Heir) meets(r *Request, term Term) bool {
	return r == nil || r.Term != term || h.Request == "" || h.Request == r.ID
}

// Encode returns h as one line of JSON.
func (h Heir) Encode() []byte { return mustJSON(h) }

// DecodeHeir decodes a heir key. The store's content is untrusted: an offer that lacks what a reign
// needs is refused.
func DecodeHeir(b []byte) (Heir, error) {
	var h Heir
	if err := json.Unmarshal(b, &h); err != nil {
		return Heir{}, fmt.Errorf("cannot read the heir key: %v", err)
	}
	if d, err := parseDuration(h.Validity); err != nil || d == 0 || h.Controller == "" || h.Incarnation == "" || h.Lease == "" || h.After == 0 || h.After >= MaxTerm {
		return Heir{}, fmt.Errorf("cannot read the heir key: something is missing in %.200q", b)
	}
	return h, nil
}

// VirtualIP is the state of one of the active's addresses, on one host.
type VirtualIP struct {
	Address   string `json:"address"` // with the prefix length
	Interface string `json:"interface"`
	State     string `json:"state"`         // absent held contested foreign failed
	Why       string `json:"why,omitempty"` // what is wrong
}

// VIPHost is the status that tanist vip keeps under vips/<name>, bound to its presence lease: the
// virtual IPs of a host whose sidecar does not hold them itself.
type VIPHost struct {
	Name        string      `json:"name"`
	Controller  string      `json:"controller"` // the one whose reign brings the addresses here
	Incarnation string      `json:"incarnation"`
	Version     string      `json:"version"`
	Host        string      `json:"host"`
	Home        string      `json:"home"` // its host, boot and PID namespace, in which PID is valid
	PID         int         `json:"pid"`
	VirtualIPs  []VirtualIP `json:"virtual_ips"`
}

// Encode returns h as one line of JSON.
func (h VIPHost) Encode() []byte { return mustJSON(h) }

// DecodeVIPHost decodes a status of tanist vip. The store's content is untrusted: a status without a
// name, a controller or an incarnation is refused.
func DecodeVIPHost(b []byte) (VIPHost, error) {
	var h VIPHost
	if err := json.Unmarshal(b, &h); err != nil {
		return VIPHost{}, fmt.Errorf("cannot read the status of a tanist vip: %v", err)
	}
	if h.Name == "" || h.Controller == "" || h.Incarnation == "" {
		return VIPHost{}, fmt.Errorf("cannot read the status of a tanist vip: no name, controller or incarnation in %.200q", b)
	}
	return h, nil
}

// Member is the permanent record of a controller, which outlives its status. The active's sidecar
// writes it.
type Member struct {
	Name string    `json:"name"`
	URL  string    `json:"url"`
	Host string    `json:"host"`
	Gone time.Time `json:"gone,omitzero"` // since when its sidecar was missed; zero: it is here
}

// Encode returns m as one line of JSON.
func (m Member) Encode() []byte { return mustJSON(m) }

// DecodeMember decodes the record of a member. The store's content is untrusted: a record without a
// valid name is refused.
func DecodeMember(b []byte) (Member, error) {
	var m Member
	if err := json.Unmarshal(b, &m); err != nil {
		return Member{}, fmt.Errorf("cannot read the record of a member: %v", err)
	}
	if err := CheckName(m.Name); err != nil {
		return Member{}, fmt.Errorf("cannot read the record of a member: name: %v", err)
	}
	return m, nil
}

// Failure describes how a reign failed.
type Failure struct {
	At   time.Time `json:"at"`
	Term Term      `json:"term"`
	Why  string    `json:"why"`
	// Start: it ended before the controller served, so the next start may fail the same way.
	Start bool `json:"start,omitempty"`
}

// FailedStart returns how the last start failed, or "" if it succeeded or there was none.
func (c Controller) FailedStart() string {
	if c.Failure == nil || !c.Failure.Start {
		return ""
	}
	return fmt.Sprintf("its last start, in term %d, failed: %s", c.Failure.Term, c.Failure.Why)
}

// Fit reports whether c is passive and able to take over.
func (c Controller) Fit() bool { return c.State == StateReady && !c.NoFailover && !c.Cooling }

// Encode returns c as one line of JSON.
func (c Controller) Encode() []byte { return mustJSON(c) }

// Operations that an operator can request.
const (
	OpSwitchover = "switchover"           // the active stops, then another takes over
	OpFailover   = "failover"             // nobody is active, and To may take over
	OpScheduled  = "scheduled-switchover" // at its time the active makes it a switchover
	OpRestart    = "restart"              // the active stops and starts its controller again, in the same reign
	// OpScheduledRestart becomes OpRestart at its time.
	OpScheduledRestart = "scheduled-restart"
)

// Request asks for a planned move, or for a failover to a controller that would not take over by
// itself. An operator writes it, and the holder that carries it out or finds it void deletes it.
// Each observer counts its lifetime from when it first saw the request, so no clocks need to agree.
type Request struct {
	ID     string        `json:"id"`
	Op     string        `json:"op"`
	To     string        `json:"to,omitempty"` // the target; empty: any fit passive
	By     string        `json:"by"`
	Reason string        `json:"reason,omitempty"`
	Term   Term          `json:"term"` // the reign to be ended; a request for another term is void
	For    time.Duration `json:"for"`  // only To may take over for this long after the release
	// At is the time of a scheduled operation, by the clock of the active's host.
	At time.Time `json:"at,omitzero"`
	// Force: To may take over although the last holder did not list it and may continue without the
	// store, or although it is configured not to be a candidate. The operator is responsible for
	// the consequences.
	Force bool `json:"force,omitempty"`
}

// moves reports whether r asks for another to become active. Nobody but the holder acts on others.
func (r *Request) moves() bool { return r != nil && r.Op != OpRestart && r.becomes() == "" }

// becomes returns what the active makes of a scheduled operation at its time, or "".
func (r *Request) becomes() string {
	switch r.Op {
	case OpScheduled:
		return OpSwitchover
	case OpScheduledRestart:
		return OpRestart
	}
	return ""
}

// author returns who asked for r and why, for the history.
func (r *Request) author() string {
	text := "(" + or(r.By, "unknown") + ")"
	if r.Reason != "" {
		text += ": " + r.Reason
	}
	return text
}

// missedAfter is how late a scheduled switchover is carried out at most. Later, nobody expects it.
const missedAfter = time.Minute

// due returns what becomes of a scheduled operation at the time now: it waits, it is due, or its
// time was missed, because the holder's sidecar was not there or the cluster was paused.
func (r Request) due(now time.Time) (wait time.Duration, missed bool) {
	return max(0, r.At.Sub(now)), now.Sub(r.At) > missedAfter
}

// Encode returns r as one line of JSON.
func (r Request) Encode() []byte { return mustJSON(r) }

// Pause tells every sidecar of the cluster to change nothing: leases are renewed, and there is no
// failover.
type Pause struct {
	By     string    `json:"by"`
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since"`
	// For is how long it is to last; zero: until somebody ends it. Every observer counts from when it
	// first saw the pause.
	For time.Duration `json:"for,omitempty"`
}

// History is the record of one reign under history/<term>. Its beginning is written when it begins
// to serve. Its holder adds the end if it can.
type History struct {
	Term   Term      `json:"term"`
	When   time.Time `json:"when"` // when its controller began to serve
	From   string    `json:"from"` // the previous holder; empty for the first
	To     string    `json:"to"`
	Reason string    `json:"reason"`
	Clean  bool      `json:"clean"` // the previous reign ended clean
	// ConfirmedBy is the operator who confirmed that the previous holder was dead (see [Dead]).
	ConfirmedBy string `json:"confirmed_by,omitempty"`
	Wait        Millis `json:"wait_ms"`   // wait for the previous holder's validity
	Fence       Millis `json:"fence_ms"`  // begin, drain and open at the repository
	Start       Millis `json:"start_ms"`  // process started → startup port answers
	Outage      Millis `json:"outage_ms"` // see OutageAtMost
	// OutageAtMost: the old holder vanished, so Outage counts from the earliest moment at which it
	// may have stopped. OutageAtLeast: the new holder did not see the end of the old one, so Outage
	// counts from its first look. Otherwise Outage counts from when the old holder was seen to stop
	// serving.
	OutageAtMost  bool `json:"outage_at_most,omitempty"`
	OutageAtLeast bool `json:"outage_at_least,omitempty"`

	// Restarts are those of the controller during the reign, the latest last; a few are kept.
	Restarts []Restart `json:"restarts,omitempty"`

	Ended     time.Time `json:"ended,omitzero"`
	EndedBy   string    `json:"ended_by,omitempty"`      // why it ended
	EndDetect Millis    `json:"end_detect_ms,omitempty"` // fault → stop begun; not in the Outage of the next reign
	// EndAtMost: EndDetect counts from the last good checks, so the fault may have come later.
	EndAtMost bool   `json:"end_at_most,omitempty"`
	EndStop   Millis `json:"end_stop_ms,omitempty"` // stop begun → tree confirmed gone
}

// Restart is a restart of the controller in place.
type Restart struct {
	At     time.Time `json:"at"` // when it served again
	Why    string    `json:"why"`
	Outage Millis    `json:"outage_ms"` // from its end, or the first sign of its failure
	// AtMost: it failed its checks, and Outage counts from the last good ones.
	AtMost bool `json:"at_most,omitempty"`
}

// restartsKept bounds [History.Restarts].
const restartsKept = 20

// Restarted adds a restart. A reign that serves again has not ended.
func (h *History) Restarted(r Restart) {
	h.Ended, h.EndedBy, h.EndDetect, h.EndAtMost, h.EndStop = time.Time{}, "", 0, false, 0
	h.Restarts = append(h.Restarts, r)
	h.Restarts = h.Restarts[max(0, len(h.Restarts)-restartsKept):]
}

// Encode returns h as one line of JSON.
func (h History) Encode() []byte { return mustJSON(h) }

// Millis is a duration as a number of milliseconds in JSON. Negative means unknown.
type Millis float64

// ToMillis converts d.
func ToMillis(d time.Duration) Millis { return Millis(float64(d) / float64(time.Millisecond)) }

// Agent is the status that an agentwatch keeps under agents/<name>, bound to its presence lease.
type Agent struct {
	Name         string    `json:"name"`
	Follows      string    `json:"follows"` // the controller that it follows; empty: none
	Term         Term      `json:"term"`
	State        string    `json:"state"` // waiting running restarting unreachable stopped
	Reason       string    `json:"reason,omitempty"`
	Restarts     int       `json:"restarts"`
	LastSwitchMS Millis    `json:"last_switch_ms"` // role key seen → agent started, at the last switch
	Since        time.Time `json:"since"`
	Host         string    `json:"host"`
	PID          int       `json:"pid"`

	Watch AgentWatch `json:"watch,omitzero"`
}

// AgentWatch identifies the process that runs an agent.
type AgentWatch struct {
	Incarnation string `json:"incarnation"`
	Home        string `json:"home"` // its host, boot and PID namespace, in which PID is valid
	PID         int    `json:"pid"`
}

// Encode returns a as one line of JSON.
func (a Agent) Encode() []byte { return mustJSON(a) }

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only records of this file are encoded, and JSON can represent all of their values
	}
	return b
}

// DecodeController decodes a status. The store's content is untrusted: a status without a name or
// an incarnation is refused.
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
