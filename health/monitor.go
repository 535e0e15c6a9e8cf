package health

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// Check is one test of the program.
type Check struct {
	// Name identifies the check in reports; it must not be empty and must be unique in a [Config].
	Name string
	// Run tests once. nil means success; an error states the failure in a few plain words without
	// secrets. Run returns soon after ctx has ended. Its calls never overlap, but they come from
	// different goroutines.
	Run func(ctx context.Context) error
	// Close, if set, releases what Run keeps between calls. A monitor calls it once per
	// Monitor.Run, at the end; Run may be called again afterwards.
	Close func()
}

// Config sets what a [Monitor] checks and how it counts.
type Config struct {
	Interval time.Duration // from the start of one run of a check to the start of the next
	Timeout  time.Duration // a run that takes longer has failed
	Rise     int           // successes in a row until a check is up
	Fall     int           // failures in a row until a check is down
	Checks   []Check
}

// Validate returns everything that is wrong with c, joined.
func (c Config) Validate() error {
	var errs []error
	if c.Interval <= 0 {
		errs = append(errs, fmt.Errorf("health.interval: %v is not a positive duration", c.Interval))
	}
	if c.Timeout <= 0 {
		errs = append(errs, fmt.Errorf("health.timeout: %v is not a positive duration", c.Timeout))
	}
	if c.Rise < 1 {
		errs = append(errs, fmt.Errorf("health.rise: %d is not at least 1", c.Rise))
	}
	if c.Fall < 1 {
		errs = append(errs, fmt.Errorf("health.fall: %d is not at least 1", c.Fall))
	}
	names := map[string]bool{}
	for i, ch := range c.Checks {
		switch {
		case ch.Name == "":
			errs = append(errs, fmt.Errorf("health.checks[%d].name: it is missing: the name identifies the check in logs and status", i))
		case names[ch.Name]:
			errs = append(errs, fmt.Errorf("health.checks[%d].name: %q is the name of another check", i, ch.Name))
		case ch.Run == nil:
			errs = append(errs, fmt.Errorf("health.checks[%d]: %q asks nothing", i, ch.Name))
		}
		names[ch.Name] = true
	}
	return errors.Join(errs...)
}

// Detection returns the longest time from the start of a hang until the program is reported
// unhealthy.
func (c Config) Detection() time.Duration {
	return c.Interval + time.Duration(max(c.Fall-1, 0))*max(c.Interval, c.Timeout) + c.Timeout
}

// Result is the latest result of one check, for status pages.
type Result struct {
	Name    string
	Verdict Verdict       // after rise and fall
	Err     error         // of the last run; nil: success, or not run yet (At is zero)
	At      time.Time     // when the last run ended or was abandoned
	Took    time.Duration // how long the last run took
	Streak  int           // how many results in a row were like the last one
	// Since is the start of the first run of the streak. If it failed, it is the start of the good run
	// before that: the program answered after it, and nobody knows for how long.
	Since time.Time

	began time.Time // the start of the last run
}

// Status is the state of a monitor at one moment.
type Status struct {
	Verdict Verdict
	Detail  string        // "ok", or the failing checks and their errors
	Took    time.Duration // the slowest of the last runs
	Since   time.Time     // for Down: start of the first failing run of a check that is down; otherwise zero
	Checks  []Result      // in the order of Config.Checks
}

// Monitor runs checks. Its methods may be called from several goroutines.
type Monitor struct {
	cfg Config
	log zerolog.Logger

	mu      sync.Mutex
	results []Result
}

// NewMonitor returns a monitor that is not yet running. cfg must be valid ([Config.Validate]);
// without checks the program is always healthy.
func NewMonitor(cfg Config, log zerolog.Logger) *Monitor {
	m := &Monitor{cfg: cfg, log: log}
	m.reset()
	return m
}

func (m *Monitor) reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.results = make([]Result, len(m.cfg.Checks))
	for i, ch := range m.cfg.Checks {
		m.results[i].Name = ch.Name
	}
}

// observation is one result on its way from a check's goroutine to Run's.
type observation struct {
	check int
	err   error
	began time.Time
	took  time.Duration
}

// Run runs the checks until ctx has ended and calls report at the first verdict and at each change
// of it. detail is "ok" or names the checks that are down and their errors; since is the earliest
// [Result.Since] of those (zero if healthy): the controller answered after it. Every call of Run starts without results.
// Run calls report from its own goroutine, one call at a time; a report that blocks delays verdicts
// but causes no second run of a check. Run may be called again after it has returned, not
// concurrently.
//
// When ctx has ended, Run waits for running checks to return, but no longer than a timeout.
func (m *Monitor) Run(ctx context.Context, report func(healthy bool, detail string, since time.Time)) {
	if len(m.cfg.Checks) == 0 {
		m.reset()
		report(true, "ok", time.Time{})
		<-ctx.Done()
		return
	}
	steady := func() schedule {
		return func(o observation) time.Time { return o.began.Add(m.cfg.Interval) }
	}
	whole := Unknown
	m.observe(ctx, m.cfg.Fall, steady, func(o observation, v Verdict, changed bool) bool {
		if changed {
			m.say(m.cfg.Checks[o.check].Name, v, o.err)
		}
		if s := m.Status(); s.Verdict != whole {
			whole = s.Verdict
			report(whole == Up, s.Detail, s.Since)
		}
		return true
	})
}

// Wait returns nil as soon as every check is up, and otherwise, when ctx has ended, an error that
// names the checks that are not. It is for a program that has just been started: a failure means
// "not yet", so checks are repeated faster than in Run (after 20 ms at first, later after a
// twentieth of the time waited, at most after Interval) and Fall does not count. It calls waiting,
// one call at a time, with each new reason to wait. Wait and Run must not overlap.
func (m *Monitor) Wait(ctx context.Context, waiting func(detail string)) error {
	if len(m.cfg.Checks) == 0 {
		return nil
	}
	began := time.Now()
	up, last := false, ""
	m.observe(ctx, 1, func() schedule { return m.hurry(began) }, func(observation, Verdict, bool) bool {
		s := m.Status()
		if s.Verdict == Down && s.Detail != last {
			last = s.Detail
			waiting(last)
		}
		up = s.Verdict == Up
		return !up
	})
	switch {
	case up:
		return nil
	case last == "":
		return errors.New("no check has answered")
	}
	return errors.New(last)
}

// schedule returns when the run after o begins.
type schedule func(o observation) time.Time

// The pace of Wait.
const (
	waitMin  = 20 * time.Millisecond
	waitPart = 20
)

// hurry is the schedule of one check of a program that is starting.
func (m *Monitor) hurry(began time.Time) schedule {
	good := 0
	return func(o observation) time.Time {
		end := o.began.Add(o.took)
		good++
		if o.err != nil {
			good = 0
		}
		if good >= m.cfg.Rise {
			return o.began.Add(m.cfg.Interval) // it is up; the others may not be
		}
		// No slower than the check itself, so that an expensive one does not compete with the start.
		pause := max(end.Sub(began)/waitPart, o.took, waitMin)
		return end.Add(min(pause, m.cfg.Interval))
	}
}

// observe runs every check at its pace until ctx has ended or each returns false. each is called
// with every result and what it makes of the check's verdict.
func (m *Monitor) observe(ctx context.Context, fall int, pace func() schedule, each func(o observation, v Verdict, changed bool) bool) {
	m.reset()
	ctx, end := context.WithCancel(ctx)
	seen := make(chan observation)
	var loops sync.WaitGroup
	for i, ch := range m.cfg.Checks {
		loops.Go(func() { m.loop(ctx, i, ch, pace(), seen) })
	}
	defer loops.Wait()
	defer end()

	counters := make([]counter, len(m.cfg.Checks))
	for i := range counters {
		counters[i] = counter{rise: m.cfg.Rise, fall: fall}
	}
	for {
		var o observation
		select {
		case <-ctx.Done():
			return
		case o = <-seen:
		}
		if ctx.Err() != nil {
			return // a result caused by the shutdown does not count
		}
		c := &counters[o.check]
		changed := c.observe(o.err == nil)
		m.keep(o, *c)
		if !each(o, c.verdict, changed) {
			return
		}
	}
}

func (m *Monitor) say(name string, v Verdict, err error) {
	if v == Up {
		m.log.Info().Str("check", name).Msg("check is up")
		return
	}
	m.log.Warn().Str("check", name).Err(err).Msg("check is down")
}

func (m *Monitor) keep(o observation, c counter) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := &m.results[o.check]
	since := r.Since
	if c.streak == 1 {
		since = o.began
		if o.err != nil && r.Err == nil && !r.began.IsZero() {
			since = r.began
		}
	}
	*r = Result{
		Name: r.Name, Verdict: c.verdict, Err: o.err, At: o.began.Add(o.took), Took: o.took,
		Streak: c.streak, Since: since, began: o.began,
	}
}

// Status returns the current state. It never waits for a check.
func (m *Monitor) Status() Status {
	m.mu.Lock()
	s := Status{Checks: append([]Result(nil), m.results...)}
	m.mu.Unlock()
	verdicts := make([]Verdict, len(s.Checks))
	var wrong []string
	for i, r := range s.Checks {
		verdicts[i] = r.Verdict
		s.Took = max(s.Took, r.Took)
		if r.Verdict != Down {
			continue
		}
		if r.Err == nil { // recovering
			wrong = append(wrong, fmt.Sprintf("%s: answers again (%d/%d)", r.Name, r.Streak, m.cfg.Rise))
			continue
		}
		wrong = append(wrong, fmt.Sprintf("%s: %v", r.Name, r.Err))
		if s.Since.IsZero() || r.Since.Before(s.Since) {
			s.Since = r.Since
		}
	}
	s.Verdict = combine(verdicts...)
	switch s.Verdict {
	case Down:
		s.Detail = strings.Join(wrong, "; ")
	case Up:
		s.Detail = "ok"
	case Unknown:
		s.Detail = "not known yet"
	}
	return s
}

// outcome is what one run of a check returned.
type outcome struct{ err error }

// loop runs one check on its own schedule until ctx has ended.
func (m *Monitor) loop(ctx context.Context, i int, ch Check, next schedule, seen chan<- observation) {
	done := make(chan outcome, 1)
	running := false // a run has not returned yet
	if ch.Close != nil {
		defer func() {
			if !running { // a check in use can't be closed
				ch.Close()
			}
		}()
	}
	var stuck time.Time // start of the run that does not return
	for {
		began := time.Now()
		if running { // the last run has not returned although the next one is due
			select {
			case <-done:
				running = false
			default:
			}
		}
		o := observation{check: i, began: began}
		if running {
			o.err = fmt.Errorf("the check has been running for %v", began.Sub(stuck).Round(time.Millisecond))
			o.took = began.Sub(stuck)
		} else {
			runCtx, cancel := context.WithTimeout(ctx, m.cfg.Timeout)
			go func() { done <- outcome{ch.Run(runCtx)} }()
			select {
			case said := <-done:
				o.err = said.err
				if errors.Is(runCtx.Err(), context.DeadlineExceeded) {
					o.err = m.late() // whatever the error of the check
				}
			case <-runCtx.Done():
				o.err = m.late()
				running, stuck = true, began
			}
			cancel()
			o.took = time.Since(began)
		}
		select {
		case seen <- o:
		case <-ctx.Done():
		}
		select {
		case <-time.After(time.Until(next(o))):
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
	}
	if running {
		select {
		case <-done:
			running = false
		case <-time.After(m.cfg.Timeout):
			m.log.Warn().Str("check", ch.Name).Msg("check does not return; abandoned")
		}
	}
}

func (m *Monitor) late() error { return fmt.Errorf("no answer within %v", m.cfg.Timeout) }
