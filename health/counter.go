package health

// Verdict is what is known of a check or of the program as a whole.
type Verdict int

// The verdicts. A check is Unknown until Rise successes or Fall failures have come in a row, and never again.
const (
	Unknown Verdict = iota
	Up
	Down
)

// String returns "unknown", "up" or "down".
func (v Verdict) String() string {
	switch v {
	case Up:
		return "up"
	case Down:
		return "down"
	case Unknown:
	}
	return "unknown"
}

// counter is the rise and fall of one check: answers in, verdict out.
type counter struct {
	rise, fall int
	verdict    Verdict
	streak     int // answers in a row that speak against the verdict (Unknown: of the kind of last)
	last       bool
}

// observe takes one answer and reports whether it changed the verdict.
func (c *counter) observe(ok bool) (changed bool) {
	if ok != c.last {
		c.streak = 0
	}
	c.last = ok
	c.streak++
	want, need := Down, c.fall
	if ok {
		want, need = Up, c.rise
	}
	if c.verdict == want || c.streak < need {
		return false
	}
	c.verdict = want
	return true
}

// combine is the verdict over several: Down if any is, else Up if all are, else Unknown.
func combine(verdicts ...Verdict) Verdict {
	all := Up
	for _, v := range verdicts {
		switch v {
		case Down:
			return Down
		case Unknown:
			all = Unknown
		case Up:
		}
	}
	return all
}
