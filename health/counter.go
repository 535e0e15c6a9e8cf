package health

// Verdict is the judgement of a check or of the program as a whole.
type Verdict int

// The verdicts. A check starts as Unknown and leaves it for good after Rise successes or Fall
// failures in a row.
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

// counter applies rise and fall to one check: it turns results into a verdict.
type counter struct {
	rise, fall int
	verdict    Verdict
	streak     int // results in a row that contradict the verdict (Unknown: of the kind of last)
	last       bool
}

// observe adds one result and reports whether it changed the verdict.
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

// combine returns the verdict over several: Down if any is Down, else Up if all are Up, else
// Unknown.
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
