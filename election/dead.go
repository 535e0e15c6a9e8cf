package election

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Dead is an operator's certificate that a controller is gone: that nothing of its reigns up to Term
// runs or ever will. It pays what is owed to that holder, and nothing else: its validity need not be
// waited out, and its list of heirs binds nobody. What earlier holders may still do is waited out as
// ever. The operator is responsible for the truth of it.
//
// It is valid for one moment of the store: for the last reign only while the term record is the one
// that the operator read. Whoever binds the role key writes that record, so a holder that has come
// back since makes the certificate void, and it can never pay for a later reign. A holder that reads
// a valid one about itself ends its reign at once, so that it does not outlive its own debt.
type Dead struct {
	Controller string  `json:"controller"`
	Term       Term    `json:"term"`            // the latest reign that it is about
	Nonce      string  `json:"nonce,omitempty"` // of that reign; empty: it was no longer the last one
	Record     Version `json:"term_version"`    // the term key as the operator read it

	By     string    `json:"by"`
	Reason string    `json:"reason,omitempty"`
	At     time.Time `json:"at"`
}

// Encode returns d as one line of JSON.
func (d Dead) Encode() []byte { return mustJSON(d) }

// DecodeDead decodes a dead key. The store's content is untrusted: a certificate about nobody is
// refused.
func DecodeDead(b []byte) (d Dead, err error) {
	if err := json.Unmarshal(b, &d); err != nil {
		return Dead{}, err
	}
	if d.Controller == "" || d.Term == 0 || d.By == "" {
		return Dead{}, fmt.Errorf("no controller, term or author in %.200q", b)
	}
	return d, nil
}

// Certify returns the certificate that name is gone as of s, or why there is nothing that it could
// pay.
func Certify(s Snapshot, name string) (Dead, error) {
	d := Dead{Controller: name, Record: s.TermVersion}
	b := s.Breadcrumb
	switch {
	case s.TermBad != nil:
		return Dead{}, fmt.Errorf("the term record is unreadable, so nobody knows who reigned last: %w", s.TermBad)
	case s.ActiveBad != nil:
		return Dead{}, fmt.Errorf("the role key is unreadable, so nobody knows who holds the lease: %w", s.ActiveBad)
	case b.Controller == name && (s.Active == nil || s.Active.Controller == name):
		if s.Active == nil && b.Clean {
			return Dead{}, fmt.Errorf("%s ended its reign clean, term %d: nobody waits for it", name, b.Of())
		}
		if b.Nonce == "" || s.Active != nil && s.Active.Nonce != b.Nonce {
			return Dead{}, fmt.Errorf("the term record does not say which reign of %s it is about", name)
		}
		d.Term, d.Nonce = b.Of(), b.Nonce
	case s.Active != nil && b.Controller == s.Active.Controller && b.Debt > 0 && b.Of() > 1:
		d.Term = b.Of() - 1
	default:
		return Dead{}, fmt.Errorf("nobody waits for %s: the last holder is %s, term %d", name, or(b.Controller, "unknown"), b.Of())
	}
	return d, nil
}

// certified returns the certificate that the last holder, whose record is b, is gone.
func (s Snapshot) certified(b Breadcrumb) (Dead, bool) {
	d := s.Dead
	if d == nil || s.TermBad != nil || b.Mode == "" || b.Nonce == "" {
		return Dead{}, false
	}
	return *d, d.Controller == b.Controller && d.Term == b.Of() && d.Nonce == b.Nonce && d.Record == s.TermVersion
}

// pays reports whether d covers the reign in previous, whose successor has the term. That reign is
// over in the store, so its holder cannot come back into it.
func (d *Dead) pays(previous Breadcrumb, term Term) bool {
	return d != nil && d.Controller == previous.Controller && previous.Of() > 0 && d.Term >= previous.Of() && d.Term < term &&
		(d.Nonce == "" || d.Nonce == previous.Nonce)
}

// deadReason is in the reason of a reign that began by a certificate.
const deadReason = " was confirmed dead ("

// words returns the reason of a reign that begins by d.
func (d Dead) words() string {
	return d.Controller + deadReason + strings.ReplaceAll(d.By, ")", "") + ")"
}
