package election

import (
	"strings"
	"testing"
	"time"
)

// TestCertificatePaysForOneHolderOnly: what holders before it owe is waited out as ever.
func TestCertificatePaysForOneHolderOnly(t *testing.T) {
	previous := Breadcrumb{Term: 7, Controller: "ctl-a", Nonce: "n7"}
	for name, c := range map[string]struct {
		dead     *Dead
		previous Breadcrumb
		want     Instant
	}{
		"about the previous holder":           {&Dead{Controller: "ctl-a", Term: 7, Nonce: "n7", By: "ana"}, previous, 8 * second},
		"read when another reigned":           {&Dead{Controller: "ctl-a", Term: 7, By: "ana"}, previous, 8 * second},
		"about one before":                    {&Dead{Controller: "ctl-x", Term: 7, By: "ana"}, previous, 10 * second},
		"about an earlier reign of it":        {&Dead{Controller: "ctl-a", Term: 5, Nonce: "n5", By: "ana"}, previous, 10 * second},
		"about another reign of the term":     {&Dead{Controller: "ctl-a", Term: 7, Nonce: "n5", By: "ana"}, previous, 10 * second},
		"about this reign and later ones":     {&Dead{Controller: "ctl-a", Term: 8, By: "ana"}, previous, 10 * second},
		"none":                                {nil, previous, 10 * second},
		"nobody reigned before, as is known":  {&Dead{Controller: "ctl-a", Term: 7, By: "ana"}, Breadcrumb{}, 10 * second},
		"the counter was raised in the reign": {&Dead{Controller: "ctl-a", Term: 7, By: "ana"}, Breadcrumb{Term: 7, Reign: 4, Controller: "ctl-a"}, 8 * second},
	} {
		tenure := &Tenure{Term: 8, Previous: c.previous, notBefore: 10 * second, owedBefore: 8 * second, paid: make(chan struct{})}
		tenure.pay(c.dead)
		tenure.pay(c.dead) // it is read again and again
		paid := false
		select {
		case <-tenure.Paid():
			paid = true
		default:
		}
		if tenure.NotBefore() != c.want || paid != (c.want == 8*second) || (tenure.Confirmed() == "ana") != paid {
			t.Errorf("%s: due at %v, paid %v, by %q", name, tenure.NotBefore(), paid, tenure.Confirmed())
		}
	}
}

func TestCertify(t *testing.T) {
	last := Breadcrumb{Term: 7, Controller: "ctl-a", Nonce: "n7", Mode: ModeStore, Validity: 4 * time.Second}
	clean := last
	clean.Clean = true
	byB := Breadcrumb{Term: 8, Controller: "ctl-b", Nonce: "n8", Mode: ModeStore, Debt: 3 * time.Second}
	paid := byB
	paid.Debt = 0
	heldBy := func(b Breadcrumb, nonce string) Snapshot {
		return Snapshot{Active: &Active{Controller: b.Controller, Term: b.Term, Nonce: nonce}, ActiveVersion: 5, ActiveLease: "l", Breadcrumb: b, TermVersion: 9}
	}
	for name, c := range map[string]struct {
		snap Snapshot
		want Dead
		says string
	}{
		"it vanished":                   {vacant(last), Dead{Controller: "ctl-a", Term: 7, Nonce: "n7", Record: 9}, ""},
		"its lease is there still":      {heldBy(last, "n7"), Dead{Controller: "ctl-a", Term: 7, Nonce: "n7", Record: 9}, ""},
		"another waits for it":          {heldBy(byB, "n8"), Dead{Controller: "ctl-a", Term: 7, Record: 9}, ""},
		"another does not wait for it":  {heldBy(paid, "n8"), Dead{}, "nobody waits for ctl-a: the last holder is ctl-b, term 8"},
		"it ended clean":                {vacant(clean), Dead{}, "ended its reign clean, term 7"},
		"nobody reigned":                {Snapshot{}, Dead{}, "the last holder is unknown"},
		"the record is of another one":  {heldBy(last, "n6"), Dead{}, "does not say which reign"},
		"the record cannot be read":     {Snapshot{TermBad: errBad{}}, Dead{}, "the term record is unreadable"},
		"the role key cannot be read":   {Snapshot{ActiveBad: errBad{}, Breadcrumb: last}, Dead{}, "the role key is unreadable"},
		"the record is written by hand": {vacant(Breadcrumb{Term: 7, Controller: "ctl-a"}), Dead{}, "does not say which reign"},
	} {
		got, err := Certify(c.snap, "ctl-a")
		if got != c.want || (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %+v, %v; want %+v, %q", name, got, err, c.want, c.says)
		}
	}
}

// TestReignOfACertificateIsCountedAsForced, in metrics.
func TestReignOfACertificateIsCountedAsForced(t *testing.T) {
	if why := WhyOf(Dead{Controller: "ctl-a", By: "ana"}.words()); why != WhyForced {
		t.Errorf("it counts as %s", why)
	}
}
