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

// Config says whose fence it is and how it is reached.
type Config struct {
	Cluster    string // as in [SetupOptions]
	Controller string // the name of this controller; the sidecar's login must stand for it
	Role       string // the login of this controller's program
	DSN        string // connection string of the sidecar's own login; libpq's variables are defaults. Kept out of logs and errors.
	Secret     Secret // how the program gets the secret of its term

	// Statement bounds each statement and each connection attempt. Zero: 10 s. It must be longer than a commit takes
	// on a busy server, and is also how long a connection may hang before it is given up.
	Statement time.Duration
	// Poll is the pause between two looks of the drain. Zero: 2 ms.
	Poll time.Duration

	// Observe is told how each [Fence.Raise] went, from the goroutine that called it. May be nil. It must not block.
	Observe func(Report)

	Log zerolog.Logger
}

// Report says how one [Fence.Raise] went.
type Report struct {
	Term     election.Term
	Begin    time.Duration // until the term was raised and everybody shut out
	Drain    time.Duration // until nothing old was left
	Open     time.Duration // until the own role could log in
	Ended    int           // sessions that were found and told to end
	Starting int           // sessions that were starting when the drain began, and were waited for
	Looks    int           // how often the drain looked
	Attempts int           // how often begin was sent
	Sealed   bool          // the secret had to be set twice, because sessions were left after begin
	Err      error         // nil: the term is open
}

// Fence is a controller's side of the fence. Its methods may be called from any goroutine; Raise and Close are to be
// called one at a time.
type Fence struct {
	cfg      Config
	link     *link
	delivery *delivery
	host     string
	port     uint16
	database string

	mu      sync.Mutex
	attempt map[election.Term]int64

	looking    chan struct{} // has a token while a look is under way
	background sync.WaitGroup
	stop       context.CancelFunc
	lifetime   context.Context //nolint:containedctx // of statements that outlive the call that began them

	// step, if not nil, is called before each step of Raise; an error ends it there. For tests.
	step func(name string) error
}

// NewFence checks the configuration. It does not connect.
func NewFence(cfg Config) (*Fence, error) {
	switch {
	case cfg.Cluster == "":
		return nil, errors.New("cannot use the repository: no cluster")
	case cfg.Controller == "":
		return nil, errors.New("cannot use the repository: no controller name")
	case cfg.Role == "":
		return nil, errors.New("cannot use the repository: repository.role is not set; it is the login of the controller's program")
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
	conn, err := parse(cfg.DSN, cfg.Statement)
	if err != nil {
		return nil, err
	}
	if conn.User == cfg.Role {
		return nil, fmt.Errorf("cannot use the repository: the sidecar logs in as %q, which is the role of the controller's program; it needs a login of its own", cfg.Role)
	}
	lifetime, stop := context.WithCancel(context.Background())
	return &Fence{
		cfg: cfg, link: newLink(conn), delivery: delivery, host: conn.Host, port: conn.Port, database: conn.Database,
		attempt: map[election.Term]int64{}, looking: make(chan struct{}, 1), lifetime: lifetime, stop: stop,
	}, nil
}

// Raise makes term the only one that can use the repository, and hands its secret to the program. After it has
// returned without an error, no statement of an older term commits any more. It returns what to add to the program's environment.
//
// It goes on until ctx ends if the repository can't be reached. It can be repeated after any error, with the same or a
// higher term; after an error nobody can log in, or the state is as it was before. An error that has the method
// RepositoryTerm means that the repository is ahead; see [AheadError].
func (f *Fence) Raise(ctx context.Context, term election.Term) (env []string, err error) {
	report := Report{Term: term}
	defer func() {
		report.Err = err
		f.log(report)
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
		if hopeless(err) || errors.Is(err, errShutdown) || errors.Is(err, errAbandoned) || ctx.Err() != nil {
			return nil, fmt.Errorf("cannot fence the repository for term %d: %w%s", term, err, advice(err))
		}
		f.cfg.Log.Warn().Err(err).Uint64("term", uint64(term)).Msg("the fence is not raised yet; trying again")
		if sleep(ctx, wait) != nil {
			return nil, fmt.Errorf("cannot fence the repository for term %d: %w%s", term, err, advice(err))
		}
	}
}

// errAbandoned is in the errors of steps that a test made fail.
var errAbandoned = errors.New("abandoned")

// raise goes through the steps once.
func (f *Fence) raise(ctx context.Context, term election.Term, report *Report) ([]string, error) {
	secret := newSecret()
	proof, err := verifier(secret)
	if err != nil {
		return nil, err
	}

	start := time.Now()
	attempt, ended, err := f.begin(ctx, term, proof, report)
	if err != nil {
		return nil, err
	}
	report.Ended += ended
	report.Begin = time.Since(start)

	start = time.Now()
	if err := f.clear(ctx, term, attempt, proof, report); err != nil {
		return nil, err
	}
	report.Drain = time.Since(start)

	start = time.Now()
	if err := f.at("deliver"); err != nil {
		return nil, err
	}
	env, err := f.delivery.deliver(values{
		Secret: secret, Role: f.cfg.Role, Cluster: f.cfg.Cluster, Controller: f.cfg.Controller,
		Host: f.host, Port: f.port, Database: f.database, Term: term,
	})
	if err != nil {
		return nil, err
	}
	if err := f.at("open"); err != nil {
		return nil, err
	}
	err = f.link.do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "SELECT tanist.open($1, $2, $3, $4)", f.cfg.Cluster, int64(term), attempt, report.Ended-ended)
		return err
	})
	if err != nil {
		return nil, definitive(err, term)
	}
	if err := f.at("opened"); err != nil {
		return nil, err
	}
	report.Open = time.Since(start)
	return env, nil
}

// begin raises the term. Attempts of one term are numbered, so that one that was given up and arrives late does not undo a later one.
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
		err = f.link.do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
			return conn.QueryRow(ctx, "SELECT tanist.begin($1, $2, $3, $4)", f.cfg.Cluster, int64(term), attempt, proof).Scan(&ended)
		})
		if code, d := refusal(err); code == stateOvertaken && d.Attempt >= attempt {
			// By ourselves: a begin whose reply was lost, or an earlier start of this sidecar that held the same lease.
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

// clear waits until nothing old is left. If sessions were found after begin, one of them may have changed the password of its
// role: the secret is set again. From then on nobody is there who could, so one more barrier is enough.
func (f *Fence) clear(ctx context.Context, term election.Term, attempt int64, proof string, report *Report) error {
	found, err := f.drain(ctx, term, attempt, report)
	if err != nil || !found {
		return definitive(err, term)
	}
	if err := f.at("seal"); err != nil {
		return err
	}
	report.Sealed = true
	err = f.link.do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "SELECT tanist.seal($1, $2, $3, $4)", f.cfg.Cluster, int64(term), attempt, proof)
		return err
	})
	if err == nil {
		_, err = f.drain(ctx, term, attempt, report)
	}
	return definitive(err, term)
}

// drain returns when nothing old is left, and whether there were sessions after begin.
func (f *Fence) drain(ctx context.Context, term election.Term, attempt int64, report *Report) (found bool, err error) {
	var pending []string // nil: the first look
	for first := true; ; first = false {
		if err := f.at("drain"); err != nil {
			return false, err
		}
		var sessions int
		var left []string
		err := f.link.do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
			return conn.QueryRow(ctx, "SELECT sessions, pending FROM tanist.drain($1, $2, $3, $4)", f.cfg.Cluster, int64(term), attempt, pending).
				Scan(&sessions, &left)
		})
		if err != nil {
			return false, err
		}
		report.Looks++
		if first {
			report.Starting += len(left)
			report.Ended += sessions
		}
		// A backend that was starting may have become a session of a controller and be gone between two looks.
		found = found || sessions > 0 || len(left) > 0
		if sessions == 0 && len(left) == 0 {
			return found, nil
		}
		if pending = left; pending == nil {
			pending = []string{}
		}
		if err := sleep(ctx, f.cfg.Poll); err != nil {
			return false, fmt.Errorf("%d sessions of older terms have not ended and %d connections are still being authenticated: %w", sessions, len(left), err)
		}
	}
}

// at is where a test may end a Raise.
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
		f.cfg.Log.Info().Uint64("term", uint64(r.Term)).Dur("begin", r.Begin).Dur("drain", r.Drain).Dur("open", r.Open).
			Int("sessions_ended", r.Ended).Int("sessions_starting", r.Starting).Msg("the repository is open for this term only")
	case errors.Is(r.Err, ErrTerm):
		f.cfg.Log.Error().Uint64("term", uint64(r.Term)).Err(r.Err).Msg("the repository refused the term")
	default:
		f.cfg.Log.Error().Uint64("term", uint64(r.Term)).Err(r.Err).Msg("the fence could not be raised; nobody is let in for this term")
	}
}

// Close shuts the program's role out of the repository, at the end of the reign of term: the next one then finds
// nothing to wait for. If a later term has begun, nothing is left to do, and that is no error.
func (f *Fence) Close(ctx context.Context, term election.Term) error {
	var closed bool
	err := f.link.do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, "SELECT tanist.close($1, $2)", f.cfg.Cluster, int64(term)).Scan(&closed)
	})
	if err != nil {
		return fmt.Errorf("cannot close term %d at the repository: %w%s", term, err, advice(err))
	}
	if closed {
		f.cfg.Log.Info().Uint64("term", uint64(term)).Msg("the repository is closed for this controller")
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

// revision is the version of the functions that this package needs.
const revision = 1

// look asks for the state. The statement may outlive ctx: giving it up at once would cost the warm connection, which may not be to be
// had again.
func (f *Fence) look(ctx context.Context) (state, error) {
	type answer struct {
		s   state
		err error
	}
	// One at a time: a repository that does not answer is not to be asked on ever more connections.
	select {
	case f.looking <- struct{}{}:
	case <-ctx.Done():
		return state{}, fmt.Errorf("cannot ask the repository: it has not answered the question before: %w", context.Cause(ctx))
	}
	done := make(chan answer, 1)
	f.background.Go(func() {
		defer func() { <-f.looking }()
		ctx, cancel := context.WithTimeout(f.lifetime, f.cfg.Statement)
		defer cancel()
		var s state
		err := f.link.do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
			return conn.QueryRow(ctx, "SELECT revision, controller, role, term, holder, phase, attempt, login, writable FROM tanist.assert($1)", f.cfg.Cluster).
				Scan(&s.revision, &s.controller, &s.role, &s.term, &s.holder, &s.phase, &s.attempt, &s.login, &s.writable)
		})
		done <- answer{s, err}
	})
	select {
	case a := <-done:
		if a.err != nil {
			return state{}, fmt.Errorf("cannot ask the repository: %w%s", a.err, advice(a.err))
		}
		return a.s, nil
	case <-ctx.Done():
		return state{}, fmt.Errorf("cannot ask the repository: no answer: %w", context.Cause(ctx))
	}
}

// Assert returns nil if the repository is open for term and this controller. [ErrTerm] is in the error if
// the repository has said that it is not: an [*AheadError] or a [*LostError]. Any other error means that it could not be asked,
// and says nothing about the term.
func (f *Fence) Assert(ctx context.Context, term election.Term) error {
	s, err := f.look(ctx)
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
	case theirs < term:
		return &LostError{Mine: term, Theirs: theirs, Phase: s.phase, text: fmt.Sprintf(
			"the repository is back at term %d, before term %d: it was restored, or failed over to a standby that did not have the fence", theirs, term)}
	case s.phase != "open" || s.login == nil || !*s.login:
		return &LostError{Mine: term, Theirs: theirs, Phase: s.phase, text: fmt.Sprintf(
			"the repository is %s for term %d, or %s may not log in there any more", s.phase, term, s.role)}
	}
	return nil
}

// Ready returns nil if this controller could raise its fence: the repository answers on the warm connection, it is writable, it knows
// this controller, and its functions are those that this program needs. It makes the warm connection if there is
// none, so it is to be called from time to time while passive.
func (f *Fence) Ready(ctx context.Context) error {
	s, err := f.look(ctx)
	switch {
	case err != nil:
		return err
	case s.revision != revision:
		return fmt.Errorf(`the repository has revision %d of the fence, this program needs %d; run "tanist repository init"`, s.revision, revision)
	case s.controller != f.cfg.Controller:
		return fmt.Errorf("the sidecar's login stands for controller %s in the repository, not for %s; check repository.dsn_file", s.controller, f.cfg.Controller)
	case s.role != f.cfg.Role:
		return fmt.Errorf("controller %s has the role %s in the repository, not %s; check repository.role", s.controller, s.role, f.cfg.Role)
	case s.login == nil:
		return fmt.Errorf("the role %s does not exist in the repository", s.role)
	case !s.writable:
		return errors.New("the repository is a standby or read-only; point repository.dsn_file to the primary (target_session_attrs=read-write)")
	}
	return nil
}

// Shutdown closes the warm connection and returns when nothing of the fence runs any more. What is open stays open. It
// may be called again.
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
