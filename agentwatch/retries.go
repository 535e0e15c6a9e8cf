package agentwatch

import "time"

// retries counts the consecutive rounds in which no controller is reachable. The rounds begin when
// that is first found, and each is due Retries.Every after the previous one. It is pure: time comes
// in as an argument.
type retries struct {
	limit Retries

	since time.Time // when it was first found; zero: a controller is reachable
	round time.Time // when the next round is due
	count int       // misses so far
}

// going reports whether the rounds have begun.
func (r *retries) going() bool { return !r.since.IsZero() }

// begin records that a probe that began at a moment found nobody.
func (r *retries) begin(at time.Time) { r.since, r.round = at, at.Add(r.limit.Every) }

// hit records that a controller is reachable, and returns how many rounds had missed.
func (r *retries) hit() (missed int) {
	missed = r.count
	r.since, r.round, r.count = time.Time{}, time.Time{}, 0
	return missed
}

// miss records that the due round found nobody, and reports whether it was the last one.
func (r *retries) miss(now time.Time) (spent bool) {
	r.count++
	r.round = r.round.Add(r.limit.Every)
	if r.round.Before(now) {
		r.round = now
	}
	return r.limit.Count > 0 && r.count >= r.limit.Count
}
