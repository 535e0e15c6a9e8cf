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

// Check is one question about the program.
type Check struct {
	// Name tells checks apart in reports; it is not empty and unique within a [Config].
	Name string
	// Run asks once. nil means that all is well; the error says what is not, in a few plain words without secrets. Run returns soon
	// after ctx has ended. It is never called again before it has returned, but from different goroutines.
	Run func(ctx context.Context) error
	// Close, if set, lets go of what Run keeps between calls. A monitor calls it once per Monitor.Run, at the end;
	// Run may be called again afterwards.
	Close func()
}

// Config says what a [Monitor] asks and how it counts.
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
		errs = append(errs, fmt.Errorf("interval: %v is not a positive duration", c.Interval))
	}
	if c.Timeout <= 0 {
		errs = append(errs, fmt.Errorf("timeout: %v is not a positive duration", c.Timeout))
	}
	if c.Rise < 1 {
		errs = append(errs, fmt.Errorf("rise: %d is not at least 1", c.Rise))
	}
	if c.Fall < 1 {
		errs = append(errs, fmt.Errorf("fall: %d is not at least 1", c.Fall))
	}
	names := map[string]bool{}
	for i, ch := range c.Checks {
		switch {
		case ch.Name == "":
			errs = append(errs, fmt.Errorf("checks[%d]: has no name", i))
		case names[ch.Name]:
			errs = append(errs, fmt.Errorf("checks[%d]: the name %q is taken by another check", i, ch.Name))
		case ch.Run == nil:
			errs = append(errs, fmt.Errorf("checks[%d] %q: asks nothing", i, ch.Name))
		}
		names[ch.Name] = true
	}
	return errors.Join(errs...)
}

// Detection is the longest time from when the program begins to hang until it is reported unhealthy.
func (c Config) Detection() time.Duration {
	return c.Interval + time.Duration(max(c.Fall-1, 0))*max(c.Interval, c.Timeout) + c.Timeout
}

// Result is the newest answer to one check, for status pages.
type Result struct {
	Name    string
	Verdict Verdict       // after rise and fall
	Err     error         // what the last run said; nil: all well, or not run yet (At is zero)
	At      time.Time     // when the last run ended or was given up
	Took    time.Duration // how long the last run took
	Streak  int           // how many answers in a row were like the last one
	// Since is when the run began that was the first of the streak: for a check that is down, when the trouble was first met.
	Since time.Time
}

// Status is the state of a monitor at one moment.
type Status struct {
	Verdict Verdict
	Detail  string        // "ok", or which checks fail and why
	Took    time.Duration // the slowest of the last runs
	Since   time.Time     // for Down: when the first failing run of a check that is down began; else zero
	Checks  []Result      // in the order of Config.Checks
}

// Monitor runs checks. Its methods may be called from several goroutines.
type Monitor struct {
	cfg Config
	log zerolog.Logger

	mu      sync.Mutex
	results []Result
}

// NewMonitor returns a monitor that is not yet running. cfg must be valid ([Config.Validate]); without checks the
// program is healthy by definition.
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

// observation is one answer on its way from a check's goroutine to Run's.
type observation struct {
	check int
	err   error
	began time.Time
	took  time.Duration
}

// Run asks until ctx has ended and calls report at the first verdict and at each change of it: detail is "ok" or says which checks
// are down and why, took is how long the run took that brought the verdict (without checks: zero). Every call of Run begins with
// nothing known. Run calls report from its own goroutine, one call at a time; a report that blocks delays the verdicts
// but starts no second run of a check. Run may be called again after it has returned, not at the same time.
//
// When ctx has ended, Run waits for checks under way to return, but not longer than a timeout.
func (m *Monitor) Run(ctx context.Context, report func(healthy bool, detail string, took time.Duration)) {
	m.reset()
	checks := m.cfg.Checks
	if len(checks) == 0 {
		report(true, "ok", 0)
		<-ctx.Done()
		return
	}
	seen := make(chan observation)
	var loops sync.WaitGroup
	for i, ch := range checks {
		loops.Go(func() { m.loop(ctx, i, ch, seen) })
	}
	defer loops.Wait()

	counters := make([]counter, len(checks))
	verdicts := make([]Verdict, len(checks))
	for i := range counters {
		counters[i] = counter{rise: m.cfg.Rise, fall: m.cfg.Fall}
	}
	whole := Unknown
	for {
		var o observation
		select {
		case <-ctx.Done():
			return
		case o = <-seen:
		}
		if ctx.Err() != nil {
			return // an answer that came because everything is being shut down is none
		}
		c := &counters[o.check]
		changed := c.observe(o.err == nil)
		verdicts[o.check] = c.verdict
		m.keep(o, *c)
		if changed {
			m.say(checks[o.check].Name, c.verdict, o.err)
		}
		if now := combine(verdicts...); now != whole {
			whole = now
			report(now == Up, m.Status().Detail, o.took)
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
	}
	*r = Result{
		Name: r.Name, Verdict: c.verdict, Err: o.err, At: o.began.Add(o.took), Took: o.took,
		Streak: c.streak, Since: since,
	}
}

// Status returns what is known now. It never blocks for a check.
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
		if r.Err == nil { // on its way up again
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
func (m *Monitor) loop(ctx context.Context, i int, ch Check, seen chan<- observation) {
	done := make(chan outcome, 1)
	running := false // a run has not returned yet
	if ch.Close != nil {
		defer func() {
			if !running { // what is still in use can't be closed
				ch.Close()
			}
		}()
	}
	var stuck time.Time // when the run that does not return began
	for {
		began := time.Now()
		if running { // the last run has not returned by the time the next one is due
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
					o.err = m.late() // however the check puts it
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
		case <-time.After(time.Until(began.Add(m.cfg.Interval))):
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
			m.log.Warn().Str("check", ch.Name).Msg("check does not return; left behind")
		}
	}
}

func (m *Monitor) late() error { return fmt.Errorf("no answer within %v", m.cfg.Timeout) }
