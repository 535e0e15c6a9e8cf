package postgres

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
	"github.com/tanist/tanist/postgres/private"
)

// reign makes ctl-a the holder.
func reign(t testing.TB, s *Store, ttl time.Duration) election.LeaseID {
	t.Helper()
	ctx := ctxFor(t, patience)
	snap, err := s.Read(ctx)
	if err != nil {
		t.Fatal(err)
	}
	lease, err := s.Grant(ctx, ttl)
	if err != nil {
		t.Fatal(err)
	}
	term := snap.Breadcrumb.Term + 1
	if err := s.Claim(ctx, election.Claim{
		Lease: lease, TermVersion: snap.TermVersion, Beat: true,
		Active:     election.Active{Controller: "ctl-a", Term: term, State: election.StateStarting},
		Breadcrumb: election.Breadcrumb{Term: term, Controller: "ctl-a", Validity: time.Second},
	}); err != nil {
		t.Fatal(err)
	}
	return lease
}

func hold(ctx context.Context, s *Store, lease election.LeaseID) error {
	_, err := s.Hold(ctx, election.Hold{Lease: lease})
	return err
}

// A lease counts the time in which the server runs. After a crash that took longer than its ttl it
// starts over: its holder can renew it, and if it doesn't, the lease ends.
func TestLeaseStartsOverWhenTheServerWasAway(t *testing.T) {
	h := restartable{newHarness(t, own(t, nil))}
	const ttl = 3 * time.Second
	s := h.open(t, h.dsn())
	lease := reign(t, s, ttl)
	h.Stop(t)
	time.Sleep(ttl + time.Second)
	h.Start(t)
	await(t, "renewal after the crash", func() bool {
		err := s.Renew(ctxFor(t, patience), lease)
		if err == nil {
			err = hold(ctxFor(t, patience), s, lease)
		}
		if errors.Is(err, election.ErrLost) {
			t.Fatal("the lease ended while the server was away")
		}
		return err == nil
	})
	// Another crash, and the holder is dead.
	h.Stop(t)
	h.Start(t)
	other := h.open(t, h.dsn())
	var began time.Time
	await(t, "the end of the lease", func() bool {
		asked := time.Now()
		snap, err := other.Read(ctxFor(t, patience))
		if err != nil {
			return false
		}
		if began.IsZero() {
			began = asked
			if snap.Vacant() {
				t.Fatal("the lease ended while the server was away")
			}
		}
		return snap.Vacant()
	})
	if lived := time.Since(began); lived < ttl {
		t.Errorf("the lease ended %v after the first look, before its ttl of %v", lived, ttl)
	}
}

// The process of a watch ends the lease of a dead holder, although nobody reads, and gets the hint.
func TestWatchEndsTheLeaseOfADeadHolder(t *testing.T) {
	h := newHarness(t, common(t))
	hints := h.open(t, h.dsn()).Watch(t.Context())
	<-hints
	ttl := h.open(t, h.dsn()).Traits().MinTTL
	begun := time.Now()
	reign(t, h.open(t, h.dsn()), ttl)
	super := superuser(t, h.server)
	await(t, "the role key is gone", func() bool {
		var n int
		if err := super.QueryRow(t.Context(), "SELECT count(*) FROM tanist_store.entry WHERE cluster = $1 AND key = 'active'", h.cluster).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n == 0
	})
	if lived := time.Since(begun); lived < ttl {
		t.Errorf("the lease ended after %v, before its ttl of %v", lived, ttl)
	}
	for end := time.After(patience); ; {
		select {
		case <-hints:
		case <-end:
			t.Fatal("no hint")
		}
		if snap, err := h.open(t, h.dsn()).Read(ctxFor(t, patience)); err == nil && snap.Vacant() {
			return
		}
	}
}

// clockOf returns what the leases are counted by.
func (h *harness) clockOf(t *testing.T) (epoch string, now time.Duration) {
	t.Helper()
	var ms int64
	if err := superuser(t, h.server).QueryRow(t.Context(), "SELECT epoch, now FROM tanist_store.clock()").Scan(&epoch, &ms); err != nil {
		t.Fatal(err)
	}
	return epoch, time.Duration(ms) * time.Millisecond
}

// The clock of the leases is the time since boot, which no step of the wall clock changes.
func TestLeasesAreCountedBySteadyTime(t *testing.T) {
	h := newHarness(t, common(t))
	before := election.BootClock()
	epoch, now := h.clockOf(t)
	after := election.BootClock()
	if !strings.HasPrefix(epoch, "uptime ") {
		t.Fatalf("the clock is %q", epoch)
	}
	if is := election.Instant(now); is.Add(20*time.Millisecond) < before || is > after {
		t.Errorf("the clock shows %v between %v and %v", is, before, after)
	}
}

// A server without a superuser is prepared by another login. Its leases are counted by the wall clock.
func TestStoreWithoutASuperuser(t *testing.T) {
	h := &harness{server: own(t, nil), cluster: "orders", login: "tanist_orders"}
	h.sql(t, "CREATE ROLE admin LOGIN CREATEROLE PASSWORD '"+password+"'")
	h.sql(t, "GRANT CREATE ON DATABASE postgres TO admin WITH GRANT OPTION")
	if err := Init(t.Context(), h.server.DSN("admin", password, "postgres"), SetupOptions{
		Cluster: h.cluster, Logins: []Login{{Name: h.login, Kind: KindController}},
	}); err != nil {
		t.Fatal(err)
	}
	h.sql(t, "ALTER ROLE "+h.login+" PASSWORD '"+password+"'")
	if epoch, _ := h.clockOf(t); !strings.HasPrefix(epoch, "wall ") {
		t.Errorf("the clock is %q", epoch)
	}
	s := h.open(t, h.dsn())
	if got := s.Warning(ctxFor(t, patience)); !strings.Contains(got, "by the wall clock") {
		t.Errorf("warning %q", got)
	}
	lease := reign(t, s, time.Minute)
	if err := hold(ctxFor(t, patience), s, lease); err != nil {
		t.Error(err)
	}
}

// Of several hosts the one that takes writes is used, however the others behave, and within one
// attempt of a renewal.
func TestOneOfSeveralHostsTakesWrites(t *testing.T) {
	server := own(t, nil)
	h := newHarness(t, server)
	replica, err := server.Standby(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = replica.Stop() })
	hole := electiontest.NewProxy(t, "127.0.0.1:1")
	hole.Hold()
	at := func(s *private.Server) string { return s.Host + ":" + strconv.Itoa(s.Port) }
	dsn := func(hosts ...string) string {
		return "postgres://" + h.login + ":" + password + "@" + strings.Join(hosts, ",") + "/postgres?sslmode=disable"
	}
	s := h.open(t, dsn(hole.Addr(), at(replica), at(server)))
	await(t, "a read although two hosts are of no use", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := s.Read(ctx)
		return err == nil
	})
	lease := reign(t, s, time.Minute)
	await(t, "a warning of a standby that is asynchronous", func() bool {
		return strings.Contains(s.Warning(ctxFor(t, patience)), "its standbys are asynchronous")
	})

	only := h.open(t, dsn(at(replica)))
	if _, err := only.Read(ctxFor(t, patience)); !errors.Is(err, election.ErrReadOnly) {
		t.Errorf("read from a standby: %v, want ErrReadOnly", err)
	}
	// A standby that is promoted is another store.
	snap, err := s.Read(ctxFor(t, patience))
	if err != nil {
		t.Fatal(err)
	}
	server.Crash()
	promoted := superuser(t, replica)
	if _, err := promoted.Exec(t.Context(), "SELECT pg_promote()"); err != nil {
		t.Fatal(err)
	}
	await(t, "renewal after the promotion", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		e, err := s.Hold(ctx, election.Hold{Lease: lease})
		if errors.Is(err, election.ErrLost) {
			t.Fatal(err)
		}
		if err == nil && (e.Origin == snap.Origin || e.Origin.Store == "") {
			t.Fatalf("the promoted server is %+v, like the one before", e.Origin)
		}
		return err == nil
	})
}

// impersonate forwards connections to a server as a pooler does: the client learns of a process that
// is not the server's.
func impersonate(t *testing.T, target string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				client.Close()
				continue
			}
			go func() { _, _ = io.Copy(server, client); server.Close() }()
			go func() {
				defer client.Close()
				buffer := make([]byte, 64<<10)
				for {
					n, err := server.Read(buffer)
					if i := bytes.Index(buffer[:n], []byte("K\x00\x00\x00\x0c")); i >= 0 && i+9 <= n {
						buffer[i+8] ^= 1
					}
					if _, e := client.Write(buffer[:n]); e != nil || err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

func TestPoolerIsRefused(t *testing.T) {
	h := newHarness(t, common(t))
	s := h.open(t, "postgres://"+h.login+":"+password+"@"+impersonate(t, h.server.Host+":"+strconv.Itoa(h.server.Port))+"/postgres?sslmode=disable")
	if _, err := s.Read(ctxFor(t, patience)); !errors.Is(err, errPooler) {
		t.Errorf("read through a pooler: %v", err)
	}
}

// Somebody cancels the wait for a synchronous standby that is away. The server reports success, and
// the commit may be lost with it.
func TestCommitThatIsNotOnTheOtherServerIsUnknown(t *testing.T) {
	server := own(t, nil)
	h := newHarness(t, server)
	s := h.open(t, h.dsn())
	lease := reign(t, s, 10*time.Minute)
	super := superuser(t, server)
	for _, sql := range []string{"ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()"} {
		if _, err := super.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	// The server waits for its standby, the wait is cancelled, and the call answers.
	cancelled := func(call func(context.Context) error) (err error) {
		answered := make(chan error, 1)
		go func() { answered <- call(ctxFor(t, patience)) }()
		await(t, "the call answers", func() bool {
			if _, err := super.Exec(t.Context(), "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND usename = $1", h.login); err != nil {
				t.Fatal(err)
			}
			select {
			case err = <-answered:
				return true
			default:
				return false
			}
		})
		return err
	}
	put := func(ctx context.Context) error {
		return s.Put(ctx, election.Put{Key: "settings", Value: []byte("1")})
	}
	await(t, "the server has read its settings again", func() bool { return errors.Is(cancelled(put), errUnconfirmed) })
	for name, call := range map[string]func(context.Context) error{
		"put":     put,
		"renewal": func(ctx context.Context) error { return hold(ctx, s, lease) },
	} {
		if err := cancelled(call); !errors.Is(err, errUnconfirmed) {
			t.Errorf("%s that is not on the standby: %v, want an unknown outcome", name, err)
		}
	}
}

// What a database or role sets as its default does not weaken a session of the store.
func TestDefaultsOfTheDatabaseDoNotMatter(t *testing.T) {
	h := newHarness(t, own(t, nil))
	for _, setting := range []string{"synchronous_commit = off", "default_transaction_isolation = 'serializable'", "search_path = nowhere", "statement_timeout = 0"} {
		h.sql(t, "ALTER DATABASE postgres SET "+setting)
		h.sql(t, "ALTER ROLE "+h.login+" SET "+setting)
	}
	s := h.open(t, h.dsn())
	if err := hold(ctxFor(t, patience), s, reign(t, s, time.Minute)); err != nil {
		t.Error(err)
	}
	l, err := s.connect(ctxFor(t, patience), application)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	for name, want := range map[string]string{"synchronous_commit": "on", "transaction_isolation": "read committed", "statement_timeout": "5s"} {
		if got, err := row(t.Context(), l, one[string], "SELECT current_setting($1)", name); err != nil || got != want {
			t.Errorf("%s is %q (%v), want %q", name, got, err, want)
		}
	}
}

// Each login does what its kind may, in its own cluster, and nothing by other means.
func TestLoginsDoOnlyWhatTheyMay(t *testing.T) {
	h := newHarness(t, common(t))
	elsewhere := newHarness(t, common(t))
	login := func(kind Kind) *Store {
		name := h.login + "_" + string(kind)
		h.init(t, Login{Name: name, Kind: kind})
		h.sql(t, "ALTER ROLE "+name+" PASSWORD '"+password+"'")
		return h.open(t, h.server.DSN(name, password, "postgres"))
	}
	sidecar := h.open(t, h.dsn())
	lease := reign(t, sidecar, 10*time.Minute)
	writes := map[Kind]string{KindAgent: "agents/agt-1", KindVIP: "vips/ctl-a", KindReader: ""}
	for kind, own := range writes {
		s := login(kind)
		ctx := ctxFor(t, patience)
		if snap, err := s.Read(ctx); err != nil || snap.Active == nil {
			t.Errorf("%s: read: %+v, %v", kind, snap, err)
		}
		mine, err := s.Grant(ctx, time.Minute)
		if err != nil {
			t.Errorf("%s: a lease of its own: %v", kind, err)
		}
		if own != "" {
			if err := s.Put(ctx, election.Put{Key: own, Value: []byte("{}"), Lease: mine}); err != nil {
				t.Errorf("%s: %s: %v", kind, own, err)
			}
		}
		for what, err := range map[string]error{
			"the role key":   s.Put(ctx, election.Put{Key: "active", Value: []byte("{}")}),
			"a removal":      s.Delete(ctx, "active", 0),
			"a claim":        s.Claim(ctx, election.Claim{Lease: mine, Active: election.Active{Controller: "x"}}),
			"a renewal":      hold(ctx, s, lease),
			"a request":      s.Put(ctx, election.Put{Key: "request", Value: []byte("{}")}),
			"another's":      s.Put(ctx, election.Put{Key: "role/ctl-b", Value: []byte("active")}),
			"a key of other": s.Put(ctx, election.Put{Key: "url", Value: []byte("http://x")}),
		} {
			if !errors.Is(err, election.ErrDenied) {
				t.Errorf("%s: %s: %v, want ErrDenied", kind, what, err)
			}
		}
		if err := s.Renew(ctx, lease); !errors.Is(err, election.ErrLost) {
			t.Errorf("%s: prolongation of another's lease: %v, want ErrLost", kind, err)
		}
		if err := s.Revoke(ctx, lease); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
	if err := hold(ctxFor(t, patience), sidecar, lease); err != nil {
		t.Errorf("others ended the sidecar's lease: %v", err)
	}
	// The login of one cluster in another, and without the functions.
	stranger := elsewhere.open(t, h.dsn())
	if _, err := stranger.Read(ctxFor(t, patience)); !errors.Is(err, election.ErrDenied) {
		t.Errorf("the login of another cluster: %v, want ErrDenied", err)
	}
	if _, err := h.open(t, h.server.DSN(h.login, "wrong", "postgres")).Read(ctxFor(t, patience)); !errors.Is(err, election.ErrDenied) {
		t.Errorf("a wrong password: %v, want ErrDenied", err)
	}
	l, err := sidecar.connect(ctxFor(t, patience), application)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	for _, sql := range []string{
		"SELECT * FROM tanist_store.entry", "DELETE FROM tanist_store.lease", "SELECT tanist_store.write('x', 'y', '', NULL)",
		"SELECT * FROM tanist_store.clock()", "SELECT nextval('tanist_store.version')", "CREATE TABLE tanist_store.x ()",
	} {
		var pe *pgconn.PgError
		if _, err := l.Exec(t.Context(), sql); !errors.As(err, &pe) || pe.Code != "42501" {
			t.Errorf("%s: %v, want it denied", sql, err)
		}
	}
}

// A login that may write little keeps a transaction open, with every lock that it can get. Nobody waits
// for it: neither the holder, nor what ends its own lease.
func TestTransactionOfALimitedLoginHoldsUpNobody(t *testing.T) {
	for kind, keys := range map[Kind]string{KindAgent: "ARRAY['agents/agt-1']", KindReader: "ARRAY[]::text[]"} {
		h := newHarness(t, common(t))
		name := h.login + "_" + string(kind)
		h.init(t, Login{Name: name, Kind: kind})
		h.sql(t, "ALTER ROLE "+name+" PASSWORD '"+password+"'")
		sidecar, limited := h.open(t, h.dsn()), h.open(t, h.server.DSN(name, password, "postgres"))
		lease := reign(t, sidecar, 10*time.Minute)
		mine, err := limited.Grant(ctxFor(t, patience), sidecar.Traits().MinTTL)
		if err != nil {
			t.Fatal(err)
		}
		if kind == KindAgent {
			if err := limited.Put(ctxFor(t, patience), election.Put{Key: "agents/agt-1", Value: []byte("{}"), Lease: mine}); err != nil {
				t.Fatal(err)
			}
		}
		l, err := limited.connect(ctxFor(t, patience), application)
		if err != nil {
			t.Fatal(err)
		}
		defer l.close()
		for _, sql := range []string{
			"BEGIN", "SET idle_in_transaction_session_timeout = 0",
			"SELECT tanist_store.renew($1, '" + string(lease) + "')", "SELECT tanist_store.revoke_lease($1, '" + string(lease) + "')",
			"SELECT tanist_store.renew($1, '" + string(mine) + "')", "SELECT tanist_store.read($1, " + keys + ", '')",
			"SELECT tanist_store.swap($1, NULL, NULL, '{}', '{}', " + keys + ", ARRAY['x'::bytea], ARRAY[NULL::text], NULL)",
		} {
			var args []any
			if strings.Contains(sql, "$1") {
				args = append(args, h.cluster)
			}
			if _, err := l.Exec(ctxFor(t, patience), sql, args...); err != nil {
				t.Fatalf("%s: %s: %v", kind, sql, err)
			}
		}
		for end := time.Now().Add(sidecar.Traits().MinTTL + time.Second); time.Now().Before(end); {
			if err := hold(ctxFor(t, patience), sidecar, lease); err != nil {
				t.Fatalf("%s: the holder: %v", kind, err)
			}
			if _, err := sidecar.Read(ctxFor(t, patience)); err != nil {
				t.Fatalf("%s: a read: %v", kind, err)
			}
		}
		// With its transaction goes what is bound to its lease.
		l.close()
		await(t, "the end of its lease", func() bool {
			if _, err := sidecar.Read(ctxFor(t, patience)); err != nil {
				t.Fatal(err)
			}
			var n int
			if err := superuser(t, h.server).QueryRow(t.Context(), "SELECT count(*) FROM tanist_store.lease WHERE id = $1", string(mine)).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n == 0
		})
	}
}

// A reader gets what is true although it sweeps nothing.
func TestReaderSeesNoKeyOfALeaseThatHasEnded(t *testing.T) {
	h := newHarness(t, common(t))
	name := h.login + "_reader"
	h.init(t, Login{Name: name, Kind: KindReader})
	h.sql(t, "ALTER ROLE "+name+" PASSWORD '"+password+"'")
	s, reader := h.open(t, h.dsn()), h.open(t, h.server.DSN(name, password, "postgres"))
	reign(t, s, s.Traits().MinTTL)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	follower, err := Open(Config{Cluster: h.cluster, DSN: h.server.DSN(name, password, "postgres"), RereadEvery: time.Hour, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	defer follower.Close()
	sightings := follower.Follow(ctxFor(t, patience))
	if snap, err := reader.Read(ctxFor(t, patience)); err != nil || snap.Active == nil {
		t.Fatalf("the role key: %+v, %v", snap, err)
	}
	await(t, "the end of the lease", func() bool {
		snap, err := reader.Read(ctxFor(t, patience))
		if err != nil {
			t.Fatal(err)
		}
		return snap.Vacant()
	})
	for seen := range sightings {
		if seen.Err == nil && seen.Active == nil {
			return
		}
	}
	t.Error("a follower has not learned it")
}

// What nobody could read is not written: it would be in the way of all readers.
func TestValuesThatNobodyCouldReadAreRefused(t *testing.T) {
	h := newHarness(t, common(t))
	s := h.open(t, h.dsn())
	for what, value := range map[string][]byte{"long": bytes.Repeat([]byte("x"), longestValue+1), "no text": {0xff, 0}} {
		if err := s.Put(ctxFor(t, patience), election.Put{Key: "agents/agt-1", Value: value}); err == nil {
			t.Errorf("a value that is %s was written", what)
		}
	}
	for _, value := range [][]byte{bytes.Repeat([]byte("x"), longestValue), {}, []byte("ü")} {
		if err := s.Put(ctxFor(t, patience), election.Put{Key: "agents/agt-1", Value: value}); err != nil {
			t.Error(err)
		}
		if all, err := s.List(ctxFor(t, patience), "agents/"); err != nil || len(all) != 1 || !bytes.Equal(all[0].Value, value) {
			t.Errorf("%d bytes: %v", len(value), err)
		}
	}
}

// What somebody else has put where the store belongs is refused. What the store has put there is not
// disturbed.
func TestInitTrustsNothingOfOthers(t *testing.T) {
	h := newHarness(t, own(t, nil))
	s := h.open(t, h.dsn())
	lease := reign(t, s, 10*time.Minute)
	h.init(t, Login{Name: h.login, Kind: KindController}, Login{Name: "another", Kind: KindReader})
	if err := hold(ctxFor(t, patience), s, lease); err != nil {
		t.Errorf("renewal after the database was prepared again: %v", err)
	}
	h.sql(t, "CREATE ROLE mallory")
	h.sql(t, "GRANT CREATE, USAGE ON SCHEMA tanist_store TO mallory")
	h.sql(t, "SET ROLE mallory; CREATE FUNCTION tanist_store.later() RETURNS int LANGUAGE sql AS 'SELECT 1'")
	err := Init(t.Context(), h.server.SuperDSN("postgres"), SetupOptions{Cluster: "other"})
	if err == nil || !strings.Contains(err.Error(), "belongs to mallory") {
		t.Errorf("init over a stranger's function: %v", err)
	}
	for name, o := range map[string]SetupOptions{
		"no cluster": {}, "a reserved name": {Cluster: "c", Logins: []Login{{Name: "pg_x", Kind: KindAgent}}},
		"no kind": {Cluster: "c", Logins: []Login{{Name: "x"}}}, "twice": {Cluster: "c", Logins: []Login{{Name: "x", Kind: KindAgent}, {Name: "x", Kind: KindReader}}},
	} {
		if _, err := SetupSQL(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// While a password is being changed on both sides, the one that was accepted last still serves.
func TestPasswordChangesWhileItRuns(t *testing.T) {
	h := newHarness(t, common(t))
	file := filepath.Join(t.TempDir(), "password")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(password)
	s, err := Open(Config{Cluster: h.cluster, DSN: h.server.DSN(h.login, "", "postgres"), PasswordFile: file})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	connects := func(what string) {
		t.Helper()
		l, err := s.connect(ctxFor(t, patience), application)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		l.close()
	}
	connects("the first password")
	write("next")
	connects("the file has the next password, and the server the first")
	h.sql(t, "ALTER ROLE "+h.login+" PASSWORD 'next'")
	connects("both have the next")
	write("wrong")
	h.sql(t, "ALTER ROLE "+h.login+" PASSWORD 'third'")
	if _, err := s.connect(ctxFor(t, patience), application); !errors.Is(err, election.ErrDenied) || strings.Contains(err.Error(), "wrong") {
		t.Errorf("neither is right: %v, want ErrDenied without the password", err)
	}
}

func TestMeaningOfTheServersAnswers(t *testing.T) {
	for code, want := range map[string]error{"42501": election.ErrDenied, "28P01": election.ErrDenied, "53100": election.ErrReadOnly, "25006": election.ErrReadOnly} {
		if err := meaning(&pgconn.PgError{Code: code}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", code, err, want)
		}
	}
	for _, code := range []string{"57014", "40001", "53300"} {
		err := meaning(&pgconn.PgError{Code: code})
		if definite(err) || errors.Is(err, election.ErrDenied) || errors.Is(err, election.ErrReadOnly) {
			t.Errorf("%s: %v, want an unknown outcome", code, err)
		}
	}
	if err := meaning(&pgconn.PgError{Code: "42883"}); !strings.Contains(err.Error(), "tanist store init") {
		t.Errorf("a database that is not prepared: %v", err)
	}
}

// A publication that was given up, and arrives after a later one, undoes nothing.
func TestLatePublicationUndoesNothing(t *testing.T) {
	h := newHarness(t, common(t))
	s, link := h.openLinked(t)
	other := h.open(t, h.dsn())
	lease := reign(t, s, 10*time.Minute)
	record := election.Active{Controller: "ctl-a", Term: 1, State: election.StateServing}
	word := hex.EncodeToString([]byte("serving"))
	link.HoldRequest(word)
	ctx, giveUp := context.WithCancel(t.Context())
	answered := make(chan error, 1)
	go func() { answered <- s.Publish(ctx, lease, record) }()
	await(t, "the publication is on its way", link.Held)
	giveUp()
	if err := <-answered; err == nil || errors.Is(err, election.ErrLost) {
		t.Fatalf("publication that does not arrive: %v", err)
	}
	record.State = election.StateStopping
	if err := other.Publish(ctxFor(t, patience), lease, record); err != nil {
		t.Fatal(err)
	}
	super, looking := superuser(t, h.server), superuser(t, h.server)
	blocking, err := super.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := blocking.Exec(t.Context(), "SELECT FROM tanist_store.cluster WHERE name = $1 FOR UPDATE", h.cluster); err != nil {
		t.Fatal(err)
	}
	under := func(waiting bool) (n int) {
		if err := looking.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND state = 'active' AND query LIKE '%'||$2||'%' AND (NOT $3 OR wait_event_type = 'Lock')",
			h.login, word, waiting).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	link.PassOne()
	link.PassOne() // the connection on which the library cancels the request; the cancellation itself stays
	await(t, "the late publication arrives", func() bool { return under(true) == 1 })
	if err := blocking.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, "the late publication has been carried out", func() bool { return under(false) == 0 })
	if snap, err := other.Read(ctxFor(t, patience)); err != nil || snap.Active == nil || snap.Active.State != election.StateStopping {
		t.Errorf("a late publication made the role key %+v, %v", snap.Active, err)
	}
}

// Somebody deletes a lease by hand at the moment at which a transaction binds a key to it.
func TestLeaseDeletedByHandMeanwhile(t *testing.T) {
	h := newHarness(t, common(t))
	s := h.open(t, h.dsn())
	lease := reign(t, s, 10*time.Minute)
	super := superuser(t, h.server)
	deleting, err := super.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := deleting.Exec(t.Context(), "DELETE FROM tanist_store.lease WHERE id = $1", string(lease)); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		answered <- s.Put(ctxFor(t, patience), election.Put{Key: "settings", Value: []byte("1"), Lease: lease})
	}()
	other := superuser(t, h.server)
	await(t, "the put waits for the deletion", func() bool {
		var n int
		if err := other.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND wait_event_type = 'Lock'", h.login).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n > 0
	})
	if err := deleting.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; !errors.Is(err, election.ErrLost) {
		t.Errorf("put with a lease that was deleted meanwhile: %v, want ErrLost", err)
	}
}

func TestTLSIsLibpqs(t *testing.T) {
	h := newHarness(t, own(t, func(o *private.Options) { o.TLS = true }))
	plain := strings.TrimSuffix(h.dsn(), "sslmode=disable")
	s := h.open(t, plain+"sslmode=verify-full&sslrootcert="+h.server.CA())
	reign(t, s, time.Minute)
	l, err := s.connect(ctxFor(t, patience), application)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	if tls, err := row(t.Context(), l, one[bool], "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"); err != nil || !tls {
		t.Errorf("the connection is encrypted: %v, %v", tls, err)
	}
	_, err = h.open(t, plain+"sslmode=verify-full").Read(ctxFor(t, patience))
	if err == nil || !strings.Contains(err.Error(), "certificate signed by unknown authority") || strings.Contains(err.Error(), password) {
		t.Errorf("a server of an unknown authority: %v", err)
	}
}
