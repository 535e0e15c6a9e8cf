package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/jackc/pgx/v5"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/postgres/private"
)

// event is one operation on the repository, as its caller observed it.
type event struct {
	open      bool // open of a term, else a write of one row
	term      election.Term
	id        int64 // of the row
	call, ret int64 // nanoseconds on the monotonic clock of this process
	unknown   bool  // it may have happened, at any time after call
}

// chaos runs sidecars that take terms from each other, and stop and crash between any two steps;
// programs that never end by themselves; and a server that crashes.
type chaos struct {
	r      *repository
	start  time.Time
	term   atomic.Uint64 // the store's counter
	nextID atomic.Int64
	raise  func(ctx context.Context, name string, term election.Term) (string, error)

	mu     sync.Mutex
	events []event

	begun, opened, ahead, abandoned, crashes, refused atomic.Int64
	programs                                          sync.WaitGroup
}

func (c *chaos) now() int64 { return int64(time.Since(c.start)) }

func (c *chaos) note(e event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, e)
}

// sidecar takes one term after the other.
func (c *chaos) sidecar(ctx context.Context, name string) {
	for sleep(ctx, jitter(600*time.Millisecond)) == nil {
		term := election.Term(c.term.Add(1))
		if rand.N(3) == 0 { // stopped between grant and fence
			_ = sleep(ctx, jitter(100*time.Millisecond))
		}
		e := event{open: true, term: term, call: c.now()}
		c.begun.Add(1)
		secret, err := c.raise(ctx, name, term)
		e.ret = c.now()
		switch {
		case err == nil:
			c.opened.Add(1)
			c.note(e)
			c.programs.Go(func() { c.program(ctx, name, secret, term) })
			continue
		case errors.Is(err, ErrTerm):
			c.ahead.Add(1)
		case errors.Is(err, errAbandoned):
			c.abandoned.Add(1)
		}
		e.unknown = true
		c.note(e)
	}
}

// program writes and reconnects after every error, until enough refusals prove that its term is
// over.
func (c *chaos) program(ctx context.Context, name, secret string, term election.Term) {
	dsn := c.r.server.DSN(c.r.role(name), secret, c.r.database)
	for refused := 0; ctx.Err() == nil && refused < 60; {
		func() {
			ctx, cancel := context.WithTimeout(ctx, longEnough)
			defer cancel()
			conn, err := pgx.Connect(ctx, dsn)
			if err != nil {
				c.refused.Add(1)
				if election.Term(c.term.Load()) > term+2 {
					refused++
				}
				return
			}
			defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // it may be closed by the server
			for ctx.Err() == nil {
				e := event{term: term, id: c.nextID.Add(1), call: c.now()}
				_, err := conn.Exec(ctx, "INSERT INTO work (id, term, writer) VALUES ($1, $2, $3)", e.id, int64(term), name)
				e.ret, e.unknown = c.now(), err != nil
				c.note(e)
				if err != nil {
					return
				}
				_ = sleep(ctx, jitter(3*time.Millisecond))
			}
		}()
		_ = sleep(ctx, jitter(15*time.Millisecond))
	}
}

// crasher crashes the server repeatedly.
func (c *chaos) crasher(ctx context.Context) {
	for sleep(ctx, 500*time.Millisecond+jitter(3*time.Second)) == nil {
		c.r.server.Crash()
		if err := c.r.server.Restart(context.WithoutCancel(ctx)); err != nil {
			c.r.t.Errorf("restart: %v", err)
			return
		}
		c.crashes.Add(1)
	}
}

func (c *chaos) run(d time.Duration, crash bool) {
	if c.start.IsZero() {
		c.start = time.Now()
	}
	ctx, cancel := context.WithTimeout(c.r.t.Context(), d)
	defer cancel()
	var running sync.WaitGroup
	for _, name := range c.r.names {
		running.Go(func() { c.sidecar(ctx, name) })
	}
	if crash {
		running.Go(func() { c.crasher(ctx) })
	}
	running.Wait()
	c.programs.Wait()
	c.r.super = connect(c.r.t, c.r.server.SuperDSN(c.r.database))
}

// reign is the model: a register with the open term. A term opens only above it, and writes only
// while it is open.
var reign = porcupine.Model{
	Init: func() any { return election.Term(0) },
	Step: func(state, input, _ any) (bool, any) {
		e := input.(event)
		if e.open {
			return e.term > state.(election.Term), e.term
		}
		return e.term == state.(election.Term), state
	},
	DescribeOperation: func(input, _ any) string {
		e := input.(event)
		if e.open {
			return fmt.Sprintf("open(%d)", e.term)
		}
		return fmt.Sprintf("write(%d)", e.term)
	},
}

// linearizable checks the history. For an operation with an unknown outcome, the repository's
// record decides.
func (c *chaos) linearizable() (porcupine.CheckResult, int) {
	t := c.r.t
	rows, err := c.r.super.Query(t.Context(), "SELECT id FROM work")
	if err != nil {
		t.Fatal(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(ids)
	rows, err = c.r.super.Query(t.Context(), "SELECT term FROM tanist.history WHERE cluster = $1 AND opened_at IS NOT NULL", c.r.cluster)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(opened)
	var history []porcupine.Operation
	lost := 0
	end := c.now()
	for _, e := range c.events {
		known := ids
		key := e.id
		if e.open {
			known, key = opened, int64(e.term)
		}
		_, there := slices.BinarySearch(known, key)
		switch {
		case !e.unknown && !there:
			lost++
		case e.unknown && !there:
			continue
		case e.unknown:
			e.ret = end
		}
		history = append(history, porcupine.Operation{ClientId: len(history), Input: e, Call: e.call, Return: e.ret})
	}
	if lost > 0 {
		t.Errorf("%d operations that were confirmed to their callers are not in the repository", lost)
	}
	return porcupine.CheckOperationsTimeout(reign, history, 5*time.Minute), len(history)
}

func chaosServer(t *testing.T) *private.Server {
	t.Helper()
	server, err := private.Start(t.Context(), private.Options{BinDir: os.Getenv("TANIST_PG_BINDIR"), Settings: map[string]string{
		"max_wal_size": "8GB", "wal_keep_size": "8GB", "checkpoint_timeout": "1h", "max_connections": "200",
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	return server
}

func TestChaos(t *testing.T) {
	d := 8 * time.Second
	if long() {
		d = 10 * time.Minute
	}
	if s := os.Getenv("TANIST_CHAOS"); s != "" {
		var err error
		if d, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	r := newRepositoryOn(t, chaosServer(t), "a", "b", "c", "d")
	from := r.walPosition()
	c := &chaos{r: r}
	var mu sync.Mutex
	fences := map[string]*Fence{}
	c.raise = func(ctx context.Context, name string, term election.Term) (string, error) {
		mu.Lock()
		f := fences[name]
		mu.Unlock()
		if f == nil { // the sidecar is started, perhaps again
			var err error
			if f, err = NewFence(r.config(name)); err != nil {
				return "", err
			}
			f.step = func(step string) error {
				switch rand.N(40) {
				case 0:
					return errors.New("crash")
				case 1, 2, 3:
					_ = sleep(ctx, jitter(150*time.Millisecond))
				}
				return nil
			}
			mu.Lock()
			fences[name] = f
			mu.Unlock()
		}
		env, err := f.Raise(ctx, term)
		if errors.Is(err, errAbandoned) {
			f.Shutdown()
			mu.Lock()
			delete(fences, name)
			mu.Unlock()
		}
		if err != nil {
			return "", err
		}
		return password(t, env), nil
	}
	for range 5 { // on a loaded machine one round may be too short to show anything
		if c.run(d, true); c.opened.Load() >= 3 {
			break
		}
	}
	for _, f := range fences {
		f.Shutdown()
	}
	rows, stale, early := r.audit(from)
	began := time.Now()
	verdict, n := c.linearizable()
	took := time.Since(began)
	var inOrder bool
	if err := r.super.QueryRow(t.Context(), `
WITH commits AS MATERIALIZED (
    SELECT xid::text::bigint AS xid, min(end_lsn) AS lsn FROM pg_get_wal_records_info_till_end_of_wal($1::pg_lsn)
     WHERE resource_manager = 'Transaction' AND record_type LIKE 'COMMIT%' GROUP BY 1),
opens AS (SELECT h.term, c.lsn, lag(h.term) OVER (ORDER BY c.lsn) AS before
            FROM tanist.history h JOIN commits c ON c.xid = h.opened_xid::text::bigint WHERE h.cluster = $2)
SELECT coalesce(bool_and(before < term), true) FROM opens WHERE before IS NOT NULL`, from, r.cluster).Scan(&inOrder); err != nil {
		t.Fatal(err)
	}
	t.Logf("%v: %d fences begun, %d opened, %d refused as older, %d abandoned half-way, %d crashes of the server, %d refused log-ins, %d rows; %d operations are %s (%v)",
		d, c.begun.Load(), c.opened.Load(), c.ahead.Load(), c.abandoned.Load(), c.crashes.Load(), c.refused.Load(), rows, n, verdict, took)
	if stale != 0 || early != 0 || !inOrder || verdict != porcupine.Ok {
		t.Errorf("%d rows were committed after the open of a later term, %d before their own; terms in order: %v; history: %s", stale, early, inOrder, verdict)
	}
	if c.opened.Load() < 3 || rows == 0 {
		t.Errorf("%d terms opened, %d rows: this run shows nothing", c.opened.Load(), rows)
	}
}

// The checker must convict a design that leaks. This test uses one that leaks at every turn,
// because the others leak too rarely on a busy host; the harness of stale writers tests all of
// them.
func TestChaosSeesALeak(t *testing.T) {
	r := newRepositoryOn(t, chaosServer(t), "a", "b")
	c := &chaos{r: r}
	broken := broken{r, connect(t, r.server.SuperDSN(r.database))}
	var mu sync.Mutex
	c.raise = func(ctx context.Context, name string, term election.Term) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		return broken.noFence(ctx, name, term)
	}
	for i := range 10 {
		c.run(3*time.Second, false)
		if verdict, n := c.linearizable(); verdict == porcupine.Illegal {
			t.Logf("%d operations, round %d: %s", n, i+1, verdict)
			return
		}
	}
	t.Error("a leaking design passes the checker, so the checker is blind")
}
