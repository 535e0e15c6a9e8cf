package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

// Config identifies a fence and its repository.
type Config struct {
	Cluster    string // as in [SetupOptions]
	Controller string // the name of this controller; the sidecar's login must belong to it
	Role       string // the login of this controller's program
	DSN        string // of the sidecar's own login; libpq's variables are defaults; never logged
	Secret     Secret // how the program receives the secret of its term

	// ReadDSN, if not nil, returns the current connection string, which may differ from DSN. It is
	// called periodically and before each new connection.
	ReadDSN func() (string, error)

	// GiveUp bounds [Fence.Raise] for the caller. Zero means unknown. [Fence.Ready] refuses a
	// server on which an operation that nobody can end may take longer.
	GiveUp time.Duration

	// Statement bounds each statement; the default is 10 s. It must be longer than a commit on a
	// busy server.
	Statement time.Duration
	// Poll is the pause between two rounds of the drain; the default is 2 ms.
	Poll time.Duration

	// Observe, if not nil, receives the report of each [Fence.Raise], in its goroutine. It must not
	// block.
	Observe func(Report)

	Log zerolog.Logger
}

// Report describes one [Fence.Raise].
type Report struct {
	Term     election.Term
	Begin    time.Duration // until the term was raised and everybody was shut out
	Drain    time.Duration // until nothing old was left
	Open     time.Duration // until the own role could log in
	Ended    int           // sessions that were terminated
	Starting int           // backends that were starting when the drain began, and were waited for
	Looks    int           // rounds of the drain
	Attempts int           // number of begin statements sent: 1 unless open found that something had changed
	Stalled  int           // connections that were ended in the middle of their login
	Err      error         // nil: the term is open
}

// Bounds are the longest waits in [Fence.Raise] that the repository itself does not cause. A
// repository that responds, and ends sessions when told to, is fenced within their sum plus a few
// round trips, whatever the old program's host does.
type Bounds struct {
	Connection time.Duration // until a fresh connection replaces a warm one that died unnoticed
	Starting   time.Duration // until clients that stopped in the middle of a login are ended, for both barriers
}

// Sum returns the total.
func (b Bounds) Sum() time.Duration { return b.Connection + b.Starting }

// RaiseBounds returns the bounds of every fence. A connection string with several hosts may add the
// Connection bound once for each dead host.
func RaiseBounds() Bounds {
	return Bounds{Connection: hedgeAfter + connectTimeout, Starting: 2 * startingPatience}
}

// startingPatience is how long the barrier waits before it ends clients in the middle of a login.
const startingPatience = 500 * time.Millisecond

// Fence is a controller's side of the fence. Its methods are safe for concurrent use, except that
// Raise and Close must be called one at a time.
type Fence struct {
	cfg      Config
	link     *link
	delivery *delivery

	mu      sync.Mutex
	attempt map[election.Term]int64
	hollow  error     // what Ready found wrong with the repository, apart from the state
	judged  time.Time // when
	fenced  bool      // this process has seen a term of the repository
	doors   doors

	looking    chan struct{} // holds a token while a background query runs
	background sync.WaitGroup
	stop       context.CancelFunc
	lifetime   context.Context //nolint:containedctx // of statements that outlive the call that began them

	// step, if not nil, is called before each step of Raise, and its error ends Raise there. For
	// tests.
	step func(name string) error
}

// DefaultGiveUp is the usual [Config.GiveUp].
const DefaultGiveUp = 30 * time.Second

// Validate reports what is wrong with c, in a line for each key of the configuration file. It reads
// no file; [NewFence] also reads the template.
func (c *Config) Validate() error {
	var errs []error
	if c.Cluster == "" {
		errs = append(errs, errors.New("cluster: it is missing"))
	}
	if c.Controller == "" {
		errs = append(errs, errors.New("name: it is missing"))
	}
	if c.Role == "" {
		errs = append(errs, errors.New("repository.role: it is missing: the login role of this controller's program"))
	}
	if c.GiveUp < 0 {
		errs = append(errs, fmt.Errorf("repository.give_up: %v is less than zero", c.GiveUp))
	}
	return errors.Join(append(errs, c.Secret.Validate())...)
}

// NewFence checks the configuration. It does not connect.
func NewFence(cfg Config) (*Fence, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Statement == 0 {
		cfg.Statement = 10 * time.Second
	}
	if cfg.Poll == 0 {
		cfg.Poll = 2 * time.Millisecond
	}
	delivery, err := newDelivery(cfg.Secret)
	if err != nil {
		return nil, err
	}
	refuse := func(conn *pgx.ConnConfig) error {
		if conn.User == cfg.Role {
			return errors.New("cannot use the repository: the sidecar logs in with the role of the controller's program; it needs a login of its own")
		}
		return nil
	}
	source, err := newSource(cfg.DSN, cfg.ReadDSN, cfg.Statement, refuse, cfg.Log)
	if err != nil {
		return nil, fmt.Errorf("repository.dsn_file: %w", err)
	}
	lifetime, stop := context.WithCancel(context.Background())
	return &Fence{
		cfg: cfg, link: newLink(source), delivery: delivery,
		attempt: map[election.Term]int64{}, looking: make(chan struct{}, 1), lifetime: lifetime, stop: stop,
	}, nil
}

// Raise makes term the only one that can use the repository, and delivers its secret to the
// program. Once it has returned nil, no statement of an older term commits. It returns what to add
// to the program's environment.
//
// While the repository is unreachable it retries until ctx ends. After any error it can be repeated
// with the same or a higher term; after an error nobody can log in, or the state is unchanged. An
// error with the method RepositoryTerm means that the repository is ahead; see [AheadError].
func (f *Fence) Raise(ctx context.Context, term election.Term) (env []string, err error) {
	report := Report{Term: term}
	defer func() {
		report.Err = err
		f.log(report)
		if err == nil {
			f.remember()
		}
		if f.cfg.Observe != nil {
			f.cfg.Observe(report)
		}
	}()
	if term == 0 || term > 1<<62 {
		return nil, fmt.Errorf("cannot fence the repository: %d is no term", term)
	}
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		env, err = f.raise(ctx, term, &report)
		if err == nil || errors.Is(err, ErrTerm) {
			return env, err
		}
		if f.hopeless(err) || errors.Is(err, errShutdown) || errors.Is(err, errAbandoned) || ctx.Err() != nil {
			return nil, fmt.Errorf("cannot fence the repository for term %d: %w%s", term, err, advice(err))
		}
		f.cfg.Log.Warn().Err(err).Uint64("term", uint64(term)).Msg("cannot fence the repository yet; retrying")
		if sleep(ctx, wait) != nil {
			return nil, fmt.Errorf("cannot fence the repository for term %d: %w%s", term, err, advice(err))
		}
	}
}

// errAbandoned marks steps that a test made fail.
var errAbandoned = errors.New("abandoned")

// raise takes all steps once. If open refuses because something has changed since begin, all of them
// must be taken again, as another attempt: an open of this one that arrives late is refused.
func (f *Fence) raise(ctx context.Context, term election.Term, report *Report) ([]string, error) {
	secret := newSecret()
	proof, err := verifier(secret)
	if err != nil {
		return nil, err
	}

	begun := time.Now()
	attempt, ended, err := f.begin(ctx, term, proof, report)
	if err != nil {
		return nil, err
	}
	report.Ended += ended
	report.Begin = time.Since(begun)

	start, before := time.Now(), report.Ended
	if err := f.drain(ctx, term, attempt, report); err != nil {
		return nil, definitive(err, term)
	}
	report.Drain = time.Since(start)

	start = time.Now()
	env, err := f.deliver(term, secret)
	if err != nil {
		return nil, err
	}
	if err := f.open(ctx, term, attempt, report.Ended-before, proof); err != nil {
		return nil, definitive(err, term)
	}
	if err := f.at("opened"); err != nil {
		return nil, err
	}
	report.Open = time.Since(start)
	return env, nil
}

// deliver hands the secret of a term to the program.
func (f *Fence) deliver(term election.Term, secret string) ([]string, error) {
	if err := f.at("deliver"); err != nil {
		return nil, err
	}
	conn := f.link.source.config()
	env, err := f.delivery.deliver(values{
		Secret: secret, Role: f.cfg.Role, Cluster: f.cfg.Cluster, Controller: f.cfg.Controller,
		Host: conn.Host, Port: conn.Port, Database: conn.Database, Term: term,
	})
	if env == nil {
		env = []string{}
	}
	return env, err
}

// open lets the program in, provided that nothing has changed since begin.
func (f *Fence) open(ctx context.Context, term election.Term, attempt int64, ended int, proof string) error {
	if err := f.at("open"); err != nil {
		return err
	}
	return f.link.do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "SELECT tanist.open($1, $2, $3, $4, $5)", f.cfg.Cluster, int64(term), attempt, ended, proof)
		return err
	})
}

// begin raises the term. It numbers the attempts of one term, so that an abandoned attempt that
// arrives late does not undo a later one.
func (f *Fence) begin(ctx context.Context, term election.Term, proof string, report *Report) (attempt int64, ended int, err error) {
	f.mu.Lock()
	for old := range f.attempt {
		if old < term {
			delete(f.attempt, old)
		}
	}
	f.attempt[term]++
	attempt = f.attempt[term]
	f.mu.Unlock()
	for {
		if err := f.at("begin"); err != nil {
			return 0, 0, err
		}
		report.Attempts++
		ended, err = f.callBegin(ctx, term, attempt, proof)
		if code, d := refusal(err); code == stateOvertaken && d.Attempt >= attempt {
			// We raised it: the reply to a begin was lost, or an earlier run of this sidecar held
			// the same lease.
			attempt = d.Attempt + 1
			f.mu.Lock()
			f.attempt[term] = attempt
			f.mu.Unlock()
			continue
		}
		if err != nil {
			return 0, 0, definitive(err, term)
		}
		return attempt, ended, f.at("begun")
	}
}

// callBegin and callDrain have what they send as arguments, because a statement that was overtaken by
// another may be sent after they have returned.
func (f *Fence) callBegin(ctx context.Context, term election.Term, attempt int64, proof string) (ended int, err error) {
	return ask(ctx, f.link, func(ctx context.Context, conn *pgx.Conn) (n int, err error) {
		err = conn.QueryRow(ctx, "SELECT tanist.begin($1, $2, $3, $4)", f.cfg.Cluster, int64(term), attempt, proof).Scan(&n)
		return n, err
	})
}

func (f *Fence) callDrain(ctx context.Context, term election.Term, attempt int64, pending []string, last, end bool) (look, error) {
	return ask(ctx, f.link, func(ctx context.Context, conn *pgx.Conn) (l look, err error) {
		err = conn.QueryRow(ctx, "SELECT sessions, pending, last, ended, stuck FROM tanist.drain($1, $2, $3, $4, $5, $6)",
			f.cfg.Cluster, int64(term), attempt, pending, last, end).Scan(&l.sessions, &l.pending, &l.last, &l.ended, &l.stuck)
		return l, err
	})
}

// look is the result of one call of tanist.drain.
type look struct {
	sessions int
	pending  []string // backends that are still starting
	last     bool     // nothing of the last term is left; these began before that
	ended    int      // of those, told to end
	stuck    bool     // the server can't end them
}

// drain returns when nothing old is left: no session, and no login that began while there was one.
func (f *Fence) drain(ctx context.Context, term election.Term, attempt int64, report *Report) error {
	var pending []string // nil: the first look
	last := false
	listed := time.Now() // when the present pass began
	for first := true; ; first = false {
		if err := f.at("drain"); err != nil {
			return err
		}
		end := time.Since(listed) >= startingPatience
		found, err := f.callDrain(ctx, term, attempt, pending, last, end)
		if err != nil {
			return err
		}
		report.Looks++
		if first {
			report.Ended += found.sessions
		}
		if first || found.last && !last {
			report.Starting += len(found.pending)
		}
		report.Stalled = max(report.Stalled, found.ended)
		if found.sessions == 0 && len(found.pending) == 0 {
			return nil
		}
		if found.last && !last {
			last, listed = true, time.Now()
		}
		if pending = found.pending; pending == nil {
			pending = []string{}
		}
		if err := sleep(ctx, f.cfg.Poll); err != nil {
			why := ""
			if found.stuck {
				why = ", which can't be ended here (see tanist repository check)"
			}
			return fmt.Errorf("%d sessions of older terms have not ended and %d connections are still being authenticated%s: %w", found.sessions, len(found.pending), why, err)
		}
	}
}

// at is the point where a test may end a Raise.
func (f *Fence) at(step string) error {
	if f.step == nil {
		return nil
	}
	if err := f.step(step); err != nil {
		return fmt.Errorf("%w at %s: %v", errAbandoned, step, err)
	}
	return nil
}

func (f *Fence) log(r Report) {
	switch {
	case r.Err == nil:
		f.cfg.Log.Info().Uint64("term", uint64(r.Term)).Dur("begin_ms", r.Begin).Dur("drain_ms", r.Drain).Dur("open_ms", r.Open).
			Int("sessions_ended", r.Ended).Int("sessions_starting", r.Starting).Int("logins_ended", r.Stalled).Msg("fenced the repository")
	case errors.Is(r.Err, ErrTerm):
		f.cfg.Log.Error().Uint64("term", uint64(r.Term)).Err(r.Err).Msg("the repository refused the term")
	default:
		f.cfg.Log.Error().Uint64("term", uint64(r.Term)).Err(r.Err).Msg("cannot fence the repository; it stays closed")
	}
}

// Close shuts the program's role out of the repository at the end of the reign of term, so that the
// next reign finds nothing to wait for. If a later term has begun, it does nothing and returns nil.
func (f *Fence) Close(ctx context.Context, term election.Term) error {
	closed, err := ask(ctx, f.link, func(ctx context.Context, conn *pgx.Conn) (closed bool, err error) {
		err = conn.QueryRow(ctx, "SELECT tanist.close($1, $2)", f.cfg.Cluster, int64(term)).Scan(&closed)
		return closed, err
	})
	if err != nil {
		return fmt.Errorf("cannot close term %d at the repository: %w%s", term, err, advice(err))
	}
	if closed {
		f.cfg.Log.Info().Uint64("term", uint64(term)).Msg("closed the repository")
	}
	return nil
}

// state is what tanist.assert returns.
type state struct {
	revision   int
	controller string
	role       string
	term       int64
	holder     *string
	phase      string
	attempt    int64
	login      *bool
	writable   bool
}

// revision is the version of the SQL functions that this package needs.
const revision = 2

// inBackground runs a query that may outlive ctx. Abandoning the query at once would cost the warm
// connection, and a new one may be unavailable. At most one runs at a time, so that a repository
// that does not respond does not accumulate connections.
func inBackground[T any](ctx context.Context, f *Fence, question func(context.Context) (T, error)) (T, error) {
	var none T
	select {
	case f.looking <- struct{}{}:
	case <-ctx.Done():
		return none, fmt.Errorf("cannot ask the repository: it has not answered the question before: %w", context.Cause(ctx))
	}
	done := make(chan result[T], 1)
	f.background.Go(func() {
		defer func() { <-f.looking }()
		ctx, cancel := context.WithTimeout(f.lifetime, f.cfg.Statement)
		defer cancel()
		value, err := question(ctx)
		done <- result[T]{value: value, err: err}
	})
	select {
	case r := <-done:
		if r.err != nil {
			return none, fmt.Errorf("cannot ask the repository: %w%s", r.err, advice(r.err))
		}
		return r.value, nil
	case <-ctx.Done():
		return none, fmt.Errorf("cannot ask the repository: no answer: %w", context.Cause(ctx))
	}
}

// state queries the state.
func (f *Fence) state(ctx context.Context) (state, error) {
	s, err := ask(ctx, f.link, func(ctx context.Context, conn *pgx.Conn) (s state, err error) {
		err = conn.QueryRow(ctx, "SELECT revision, controller, role, term, holder, phase, attempt, login, writable FROM tanist.assert($1)", f.cfg.Cluster).
			Scan(&s.revision, &s.controller, &s.role, &s.term, &s.holder, &s.phase, &s.attempt, &s.login, &s.writable)
		return s, err
	})
	if err == nil && s.term > 0 {
		f.remember()
	}
	return s, err
}

// remember notes that the repository has had a term.
func (f *Fence) remember() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fenced = true
}

// Assert returns nil if the repository is open for term and this controller. The error wraps
// [ErrTerm] if the repository has answered that it is not: an [*AheadError] or a [*LostError]. Any
// other error means that the query failed; it proves nothing about the term.
func (f *Fence) Assert(ctx context.Context, term election.Term) error {
	s, err := inBackground(ctx, f, func(ctx context.Context) (state, error) {
		f.link.renew(ctx)
		return f.state(ctx)
	})
	if err != nil {
		return err
	}
	theirs, holder := election.Term(s.term), "nobody"
	if s.holder != nil {
		holder = *s.holder
	}
	switch {
	case theirs > term, theirs == term && holder != f.cfg.Controller:
		return &AheadError{Mine: term, Theirs: theirs, Holder: holder, text: fmt.Sprintf(
			"the repository is at term %d of %s; term %d of %s is over there", theirs, holder, term, f.cfg.Controller)}
	case theirs == 0 && !f.wasFenced():
		return fmt.Errorf("the repository was not fenced for term %d, which began before it was configured; the next term is", term)
	case theirs < term:
		return &LostError{Mine: term, Theirs: theirs, Phase: s.phase, text: fmt.Sprintf(
			"the repository is back at term %d, before term %d: it was restored, or failed over to a standby that did not have the fence", theirs, term)}
	case s.phase != "open" || s.login == nil || !*s.login:
		return &LostError{Mine: term, Theirs: theirs, Phase: s.phase, text: fmt.Sprintf(
			"the repository is %s for term %d, or %s may not log in there any more", s.phase, term, s.role)}
	}
	return nil
}

// wasFenced reports whether the repository has had a term as long as this process runs. A reign that
// was taken up may be older than the repository's configuration: then there is nothing to have lost.
func (f *Fence) wasFenced() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fenced
}

// Ready returns nil if this controller could raise its fence and the fence would hold: the
// repository responds on the warm connection, is writable, knows this controller and has the
// functions that this version needs, and [Check] finds nothing that makes the fence hollow. It
// makes the warm connection if there is none, so callers should call it periodically while passive.
func (f *Fence) Ready(ctx context.Context) error {
	_, err := inBackground(ctx, f, func(ctx context.Context) (struct{}, error) {
		f.link.renew(ctx)
		s, err := f.state(ctx)
		if err == nil {
			err = f.fits(s)
		}
		if err == nil {
			err = f.judge(ctx)
		}
		return struct{}{}, err
	})
	return err
}

// fits returns what is wrong with a state.
func (f *Fence) fits(s state) error {
	switch {
	case s.revision != revision:
		return fmt.Errorf(`the repository has revision %d of the fence, this program needs %d; run "tanist repository init"`, s.revision, revision)
	case s.controller != f.cfg.Controller:
		return fmt.Errorf("the sidecar's login belongs to controller %s in the repository, not to %s: check repository.dsn_file", s.controller, f.cfg.Controller)
	case s.role != f.cfg.Role:
		return fmt.Errorf("controller %s has the role %s in the repository, not %s; check repository.role", s.controller, s.role, f.cfg.Role)
	case s.login == nil:
		return fmt.Errorf("the role %s does not exist in the repository", s.role)
	case !s.writable:
		return errors.New("the repository is a standby or read-only; point repository.dsn_file to the primary (target_session_attrs=read-write)")
	}
	return nil
}

// judgeEvery is the interval at which [Fence.Ready] evaluates the conditions while they hold. Only
// an operator changes them.
const judgeEvery = 5 * time.Second

// judge returns the condition that does not hold. A standby is no reason to refuse a takeover: the
// risk is its promotion.
func (f *Fence) judge(ctx context.Context) error {
	f.mu.Lock()
	fresh := f.hollow == nil && !f.judged.IsZero() && time.Since(f.judged) < judgeEvery
	f.mu.Unlock()
	if fresh {
		return nil
	}
	findings, err := ask(ctx, f.link, func(ctx context.Context, conn *pgx.Conn) ([]Finding, error) {
		return conditions(ctx, conn, f.cfg.Cluster, f.cfg.GiveUp)
	})
	if err != nil {
		return err
	}
	f.knocked(ctx)
	var errs []error
	for _, finding := range append(findings, f.doors.found()...) {
		if finding.Severity == Refuse && finding.Code != "async-standby" {
			errs = append(errs, fmt.Errorf("%s; %s", finding.Text, finding.Do))
		}
	}
	err = errors.Join(errs...)
	f.mu.Lock()
	f.hollow, f.judged = err, time.Now()
	f.mu.Unlock()
	return err
}

// Shutdown closes the warm connection and returns once nothing of the fence runs. An open term
// stays open. It may be called again.
func (f *Fence) Shutdown() {
	f.stop()
	f.link.shutdown()
	f.background.Wait()
}

// sleep waits for d, or returns the cause of ctx's end.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
