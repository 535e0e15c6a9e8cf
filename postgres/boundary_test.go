package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/internal/testbed"
	"github.com/tanist/tanist/postgres/private"
)

// A controller's former role is shut out, with its sessions, when init gives the controller another
// one.
func TestRoleThatInitReplacesIsShutOut(t *testing.T) {
	r := newRepository(t, "a", "b")
	a, b := r.fence("a"), r.fence("b")
	one := r.raise(a, 1)
	old := r.mustLogin("a", one)
	o := r.setup()
	o.Controllers[0].Role += "_new"
	err := Init(t.Context(), r.server.SuperDSN(r.database), o)
	if err == nil || !strings.Contains(err.Error(), r.role("a")) {
		t.Errorf("the role of an open term was replaced: %v", err)
	}
	if err := insert(t.Context(), old, 1, "a"); err != nil {
		t.Errorf("a refused init ended a session: %v", err)
	}
	if err := a.Close(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	// An operator may have done this by hand; the fence must still know the role.
	mustExec(t, r.super, "ALTER ROLE "+r.role("a")+" LOGIN PASSWORD 'by hand'")
	old = r.mustLogin("a", "by hand")
	if err := Init(t.Context(), r.server.SuperDSN(r.database), o); err != nil {
		t.Fatal(err)
	}
	if err := insert(t.Context(), old, 1, "a"); err == nil {
		t.Error("a session of the replaced role writes on")
	}
	if _, err := r.login("a", "by hand"); err == nil {
		t.Error("the replaced role may log in")
	}
	mustExec(t, r.super, "ALTER ROLE "+r.role("a")+" LOGIN PASSWORD 'by hand'")
	old = r.mustLogin("a", "by hand")
	r.raise(b, 2)
	if err := insert(t.Context(), old, 1, "a"); err == nil {
		t.Error("a session of the replaced role writes in the next term")
	}
}

// A program that changes its own password after begin and ends before the first round of drain does
// not keep its login.
func TestPasswordChangedBetweenBeginAndDrain(t *testing.T) {
	r := newRepository(t, "a")
	a := r.fence("a")
	one := r.raise(a, 1)
	program := r.mustLogin("a", one)
	stopped := int(program.PgConn().PID())
	stopProcess(t, stopped) // it does not receive the signal to end
	t.Cleanup(func() { continueProcess(stopped) })
	known, err := verifier("known to the old process")
	if err != nil {
		t.Fatal(err)
	}
	drains := 0
	a.step = func(step string) error {
		if step != "drain" {
			return nil
		}
		if drains++; drains > 1 {
			return nil
		}
		// The effect of the session's own ALTER ROLE, and its end, before anybody looks.
		mustExec(t, r.super, "ALTER ROLE "+r.role("a")+" PASSWORD '"+known+"'")
		continueProcess(stopped)
		r.gone(stopped)
		return nil
	}
	two := r.raise(a, 2)
	if conn, err := r.login("a", "known to the old process"); err == nil {
		_ = conn.Close(t.Context())
		t.Error("an old process knows the password of the new term")
	}
	r.mustLogin("a", two)
}

// A role that may alter the program's role changes its password after the drain: open detects it,
// and the term begins again.
func TestPasswordChangedBeforeOpen(t *testing.T) {
	r := newRepository(t, "a")
	a := r.fence("a")
	r.raise(a, 1)
	known, err := verifier("set from outside")
	if err != nil {
		t.Fatal(err)
	}
	opens := 0
	a.step = func(step string) error {
		if step == "open" {
			if opens++; opens == 1 {
				mustExec(t, r.super, "ALTER ROLE "+r.role("a")+" LOGIN PASSWORD '"+known+"'")
			}
		}
		return nil
	}
	two := r.raise(a, 2)
	if opens != 2 {
		t.Errorf("opened in %d attempts", opens)
	}
	if _, err := r.login("a", "set from outside"); err == nil {
		t.Error("somebody else knows the password of the new term")
	}
	r.mustLogin("a", two)
}

// A session outlives its role, which is dropped or renamed and then made again.
func TestSessionOfARoleThatWasDroppedBlocksTheOpening(t *testing.T) {
	for name, change := range map[string][]string{
		"dropped": {"DROP OWNED BY %s", "DROP ROLE %[1]s"},
		"renamed": {"ALTER ROLE %s RENAME TO %[1]s_was"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRepository(t, "a", "b")
			a, b := r.fence("a"), r.fence("b")
			old := r.mustLogin("a", r.raise(a, 1))
			if _, err := old.Exec(t.Context(), "SET ROLE NONE"); err != nil {
				t.Fatal(err)
			}
			mustExec(t, r.super, "GRANT INSERT ON work TO PUBLIC; GRANT USAGE ON work_id_seq TO PUBLIC")
			for _, sql := range change {
				mustExec(t, r.super, fmt.Sprintf(sql, r.role("a")))
			}
			r.blocks(b, old, "a role that is no more")
		})
	}
}

// The session of a role that was made and dropped between two looks of the fence, which therefore
// never bound it, blocks the opening too.
func TestSessionOfAnUnknownRoleBlocksTheOpening(t *testing.T) {
	r := newRepository(t, "a", "b")
	r.raise(r.fence("a"), 1)
	mustExec(t, r.super, "GRANT INSERT ON work TO PUBLIC; GRANT USAGE ON work_id_seq TO PUBLIC")
	role := r.role("a")
	mustExec(t, r.super, fmt.Sprintf("DROP OWNED BY %s; DROP ROLE %[1]s; CREATE ROLE %[1]s LOGIN PASSWORD 'by hand'", role))
	old := r.mustLogin("a", "by hand")
	mustExec(t, r.super, "DROP ROLE "+role)
	r.blocks(r.fence("b"), old, "an unknown role")
}

// blocks checks that a session of the first term, which stands still, blocks the opening of the
// second, even after another init, and writes nothing once that is open.
func (r *repository) blocks(b *Fence, old *pgx.Conn, of string) {
	r.t.Helper()
	pid := int(old.PgConn().PID())
	stopProcess(r.t, pid)
	r.t.Cleanup(func() { continueProcess(pid) })
	if err := Init(r.t.Context(), r.server.SuperDSN(r.database), r.setup()); err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := b.Raise(ctx, 2); err == nil {
		r.t.Errorf("opened while a session of %s lives", of)
	}
	continueProcess(pid)
	r.raise(b, 2)
	if err := insert(r.t.Context(), old, 1, "a"); err == nil {
		r.t.Errorf("a session of %s writes in a later term", of)
	}
}

// A role that somebody whom the fence can't end alters almost constantly does not delay a takeover:
// the change that begin waited for makes begin fail, and begin must be first at the next gap.
func TestRoleThatIsAlteredAllTheTimeDoesNotDelayTheRaise(t *testing.T) {
	r := newRepository(t, "a", "b")
	r.raise(r.fence("a"), 1)
	ctx, cancel := context.WithCancel(t.Context())
	var other sync.WaitGroup
	var altered atomic.Int64
	conn := connect(t, r.server.SuperDSN(r.database))
	other.Go(func() {
		for sleep(ctx, 3*time.Millisecond) == nil {
			for _, sql := range []string{"BEGIN", "ALTER ROLE " + r.role("a") + " CONNECTION LIMIT 100", "SELECT pg_sleep(0.1)", "COMMIT"} {
				if _, err := conn.Exec(t.Context(), sql); err != nil && strings.Contains(err.Error(), "concurrently updated") {
					_, _ = conn.Exec(t.Context(), "ROLLBACK") // it lost to the fence
					break
				}
			}
			altered.Add(1)
		}
	})
	defer func() { cancel(); other.Wait() }()
	for altered.Load() < 2 {
		if err := sleep(t.Context(), time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	cfg := r.config("b")
	var report Report
	cfg.Observe = func(r Report) { report = r }
	b, err := NewFence(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Shutdown)
	late, begun := testbed.Lateness(t), time.Now()
	r.raise(b, 2)
	if took := time.Since(begun); took > 2*time.Second+late() || report.Attempts > 1 {
		t.Errorf("raised in %v, with %d attempts", took, report.Attempts)
	} else {
		t.Logf("raised in %v", took)
	}
}

// stall connects and stops in the middle of the login, after the server has requested a password.
func stall(t *testing.T, r *repository, role string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", net.JoinHostPort(r.server.Host, fmt.Sprint(r.server.Port)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	front := pgproto3.NewFrontend(conn, conn)
	front.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": role, "database": r.database}})
	if err := front.Flush(); err != nil {
		t.Fatal(err)
	}
	if m, err := front.Receive(); err != nil {
		t.Fatal(err)
	} else if _, ok := m.(*pgproto3.AuthenticationSASL); !ok {
		t.Fatalf("the server said %T", m)
	}
	return conn
}

// Connections that stop in the middle of their login, or delay it themselves, do not delay a
// takeover by authentication_timeout.
func TestStalledLoginsDoNotDelayTheRaise(t *testing.T) {
	server, err := private.Start(t.Context(), private.Options{BinDir: os.Getenv("TANIST_PG_BINDIR"), Settings: map[string]string{"authentication_timeout": "60s"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() })
	r := newRepositoryOn(t, server, "a", "b")
	a, b := r.fence("a"), r.fence("b")
	secret := r.raise(a, 1)
	if err := b.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	stall(t, r, r.role("a"))
	stall(t, r, "a_stranger")
	go func() {
		conn, err := pgx.Connect(t.Context(), r.server.DSN(r.role("a"), secret, r.database)+"&options=-cpost_auth_delay%3D30")
		if err == nil {
			_ = conn.Close(t.Context())
		}
	}()
	for n := 0; n < 1; {
		if err := r.super.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks l WHERE locktype = 'virtualxid' AND pid <> pg_backend_pid()
			AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = l.pid)`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		n -= 2
	}
	ctx, cancel := context.WithTimeout(t.Context(), longEnough)
	defer cancel()
	late, begun := testbed.Lateness(t), time.Now()
	if _, err := b.Raise(ctx, 2); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 3*time.Second+late() {
		t.Errorf("raised in %v", took)
	} else {
		t.Logf("raised in %v", took)
	}
}

// If the barrier can't end starting backends, a give_up that is not longer than
// authentication_timeout is refused.
func TestGiveUpMustOutlastLoginsThatNobodyCanEnd(t *testing.T) {
	r := newRepository(t, "a")
	for _, c := range []struct {
		giveUp time.Duration
		fit    bool
	}{{9 * time.Second, false}, {30 * time.Second, true}} { // authentication_timeout is 10 s here
		cfg := r.config("a")
		cfg.GiveUp = c.giveUp
		f, err := NewFence(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Ready(t.Context()); err != nil {
			t.Errorf("give_up %v, and the fence may end them: %v", c.giveUp, err)
		}
		f.Shutdown()
		mustExec(t, r.super, "REVOKE EXECUTE ON FUNCTION tanist.end_starting FROM tanist_owner")
		if f, err = NewFence(cfg); err != nil {
			t.Fatal(err)
		}
		if err := f.Ready(t.Context()); (err == nil) != c.fit || err != nil && !strings.Contains(err.Error(), "give_up") {
			t.Errorf("give_up %v, and the fence may not end them: %v", c.giveUp, err)
		}
		f.Shutdown()
		mustExec(t, r.super, "GRANT EXECUTE ON FUNCTION tanist.end_starting TO tanist_owner")
	}
}

// What others put into the schema before init is found, object by object, and nothing of it runs
// with the rights of the operator.
func TestPlantedSchemaIsRefused(t *testing.T) {
	server, err := private.Start(t.Context(), private.Options{BinDir: os.Getenv("TANIST_PG_BINDIR")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() })
	super := connect(t, server.SuperDSN("postgres"))
	mustExec(t, super, "CREATE ROLE program LOGIN PASSWORD 'p'")
	setup := SetupOptions{Cluster: "c", Controllers: []SetupController{{Name: "a", Role: "c_a", Sidecar: "c_sc_a"}}}
	trap := `CREATE FUNCTION %[1]s.trap() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN ALTER ROLE program SUPERUSER; RETURN NEW; END'`
	for i, plant := range [][]string{
		{"program|CREATE SCHEMA tanist"},
		{
			"program|CREATE SCHEMA tanist; " + fmt.Sprintf(trap, "tanist"),
			"program|CREATE TABLE tanist.fence (cluster text PRIMARY KEY, term bigint DEFAULT 0, holder text, attempt bigint DEFAULT 0, phase text DEFAULT 'closed')",
			"program|CREATE TRIGGER t BEFORE INSERT ON tanist.fence FOR EACH ROW EXECUTE FUNCTION tanist.trap()",
			"program|GRANT ALL ON SCHEMA tanist TO PUBLIC; GRANT ALL ON tanist.fence TO PUBLIC",
		},
		{ // into a schema that is the fence's
			"super|" + mustSQL(t, setup),
			"super|GRANT CREATE ON SCHEMA tanist TO program",
			"program|CREATE FUNCTION tanist.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
		},
		{
			"super|" + mustSQL(t, setup),
			"super|GRANT TRIGGER ON tanist.fence TO program; CREATE SCHEMA p AUTHORIZATION program; GRANT USAGE ON SCHEMA tanist TO program",
			"program|" + fmt.Sprintf(trap, "p"),
			"program|CREATE TRIGGER t BEFORE INSERT OR UPDATE ON tanist.fence FOR EACH ROW EXECUTE FUNCTION p.trap()",
		},
		{"super|" + mustSQL(t, setup), "super|GRANT INSERT ON tanist.controller TO program"},
		{"super|" + mustSQL(t, setup), "super|GRANT tanist_owner TO program"},
	} {
		database := fmt.Sprintf("planted%d", i)
		mustExec(t, super, "CREATE DATABASE "+database+" OWNER program")
		as := map[string]*pgx.Conn{"super": connect(t, server.SuperDSN(database)), "program": connect(t, server.DSN("program", "p", database))}
		for _, step := range plant {
			who, sql, _ := strings.Cut(step, "|")
			if _, err := as[who].PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
		}
		err := Init(t.Context(), server.SuperDSN(database), setup)
		if err == nil || !strings.Contains(err.Error(), "program") && !strings.Contains(err.Error(), "trigger t") {
			t.Errorf("%q: init reports %v", plant, err)
		}
		var danger bool
		if err := super.QueryRow(t.Context(), "SELECT rolsuper FROM pg_roles WHERE rolname = 'program'").Scan(&danger); err != nil || danger {
			t.Errorf("%q: the program is a superuser now (%v)", plant, err)
			mustExec(t, super, "ALTER ROLE program NOSUPERUSER")
		}
		mustExec(t, super, "DO $$ BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'tanist_owner') THEN REVOKE tanist_owner FROM program; END IF; END $$")
	}
}

func mustSQL(t *testing.T, o SetupOptions) string {
	t.Helper()
	sql, err := SetupSQL(o)
	if err != nil {
		t.Fatal(err)
	}
	return sql
}

// A condition that makes the fence hollow is refused by init, makes a passive unfit, and is
// reported by check.
func TestConditionsAreEnforcedEverywhere(t *testing.T) {
	r := newRepository(t, "a", "b")
	check := func(name string) []string {
		t.Helper()
		findings, err := Check(t.Context(), CheckOptions{DSN: r.server.DSN(r.sidecar(name), "sidecar-"+name, r.database), Cluster: r.cluster})
		if err != nil {
			t.Fatal(err)
		}
		return codes(findings)
	}
	for _, c := range []struct{ do, undo, code, want string }{
		{"ALTER ROLE %b SUPERUSER", "ALTER ROLE %b NOSUPERUSER", "above-the-fence", "SUPERUSER"},
		{"ALTER ROLE %b REPLICATION", "ALTER ROLE %b NOREPLICATION", "above-the-fence", "REPLICATION"},
		{"ALTER ROLE %b CREATEROLE", "ALTER ROLE %b NOCREATEROLE", "above-the-fence", "CREATEROLE"},
		{"ALTER ROLE %app SUPERUSER", "ALTER ROLE %app NOSUPERUSER", "above-the-fence", "SUPERUSER (through"},
		{"ALTER ROLE %app LOGIN", "ALTER ROLE %app NOLOGIN", "acts-as-application", "%app"},
		{"CREATE ROLE %app_m LOGIN IN ROLE %app", "DROP ROLE %app_m", "acts-as-application", "%app_m"},
		{
			"CREATE ROLE %app_g IN ROLE %app; CREATE ROLE %app_m LOGIN NOINHERIT IN ROLE %app_g", "DROP ROLE %app_m; DROP ROLE %app_g",
			"acts-as-application", "%app_m",
		},
		// All data includes the tables of the fence; without sessions no sidecar can fence.
		{"GRANT pg_write_all_data TO %app", "REVOKE pg_write_all_data FROM %app", "above-the-fence", "all data"},
		{"GRANT pg_signal_backend TO %b", "REVOKE pg_signal_backend FROM %b", "above-the-fence", "the sessions of others"},
		{"GRANT %app TO %sca", "REVOKE %app FROM %sca", "above-the-fence", "the program's objects"},
		{"CREATE TABLE tanist.x (i int)", "DROP TABLE tanist.x", "fence-objects", "tanist.x"},
	} {
		replace := strings.NewReplacer("%b", r.role("b"), "%app", r.app(), "%sca", r.sidecar("a")).Replace
		mustExec(t, r.super, replace(c.do))
		if got := check("a"); !slices.Contains(got, "error "+c.code) {
			t.Errorf("%s: check reports %q", c.do, got)
		}
		f, err := NewFence(r.config("a"))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), replace(c.want)) {
			t.Errorf("%s: fitness reports %v", c.do, err)
		}
		f.Shutdown()
		if err := Init(t.Context(), r.server.SuperDSN(r.database), r.setup()); err == nil || !strings.Contains(err.Error(), replace(c.want)) {
			t.Errorf("%s: init reports %v", c.do, err)
		}
		mustExec(t, r.super, replace(c.undo))
		if got := check("a"); slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "error") }) {
			t.Errorf("%s: check reports %q", c.undo, got)
		}
	}
}

// Every line of pg_hba.conf that admits a program without its secret is found, unless an earlier
// line requires the secret.
func TestWaysInWithoutTheSecretAreFound(t *testing.T) {
	server, err := private.Start(t.Context(), private.Options{BinDir: os.Getenv("TANIST_PG_BINDIR")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() })
	super := connect(t, server.SuperDSN("postgres"))
	mustExec(t, super, "CREATE ROLE crew; CREATE ROLE c_a IN ROLE crew; CREATE ROLE somebody")
	for _, c := range []struct {
		hba  []string
		line bool // refused because of the file
		try  bool // refused because of an attempt
	}{
		{hba: nil},
		{hba: []string{"local all all peer"}, line: true},
		{hba: []string{"local all all scram-sha-256", "local all all peer"}},
		{hba: []string{"host all all 127.0.0.1/32 trust"}, line: true, try: true},
		{hba: []string{"host all all 127.0.0.0/8 scram-sha-256", "host all all 127.0.0.1/32 trust"}},
		{hba: []string{"host all all 192.0.2.0/24 trust"}, line: true},
		{hba: []string{"host all all 192.0.2.0/25 scram-sha-256", "host all all 192.0.2.0/24 trust"}, line: true},
		{hba: []string{"hostssl all all all scram-sha-256", "hostnossl all all 192.0.2.0/24 trust"}, line: true},
		{hba: []string{"host all all 192.0.2.0/24 ident"}, line: true},
		{hba: []string{"host other all all trust", "host all somebody all trust", "host all +somebody all trust", "host replication all all trust"}},
		{hba: []string{"host all +crew all trust"}, line: true},
		{hba: []string{"host all all 192.0.2.0/24 reject", "host all all 192.0.2.7/32 ident"}},
	} {
		lines := append([]string{"local all postgres trust"}, c.hba...)
		lines = append(lines, "local all all scram-sha-256", "host all all all scram-sha-256")
		if err := os.WriteFile(filepath.Join(server.Dir, "data", "pg_hba.conf"), []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		reload(t, super)
		setup := SetupOptions{Cluster: "c", Controllers: []SetupController{{Name: "a", Role: "c_a", Sidecar: "c_sc_a", SidecarPassword: "s"}}}
		err = Init(t.Context(), server.SuperDSN("postgres"), setup)
		if c.line && (err == nil || !strings.Contains(err.Error(), "pg_hba.conf")) || !c.line && err != nil {
			t.Errorf("%q: init reports %v", c.hba, err)
		}
		if !c.try {
			continue
		}
		// The operator guarantees the server's own host; this controller is there, and tries it.
		setup.AllowLocalLogins = true
		if err := Init(t.Context(), server.SuperDSN("postgres"), setup); err != nil {
			t.Fatal(err)
		}
		f, err := NewFence(Config{
			Cluster: "c", Controller: "a", Role: "c_a", DSN: server.DSN("c_sc_a", "s", "postgres"), Secret: Secret{Env: "PGPASSWORD"},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "without its password") {
			t.Errorf("%q: fitness reports %v", c.hba, err)
		}
		f.Shutdown()
	}
}

// reload makes the server read its files again.
func reload(t *testing.T, super *pgx.Conn) {
	t.Helper()
	var before, now time.Time
	if err := super.QueryRow(t.Context(), "SELECT pg_conf_load_time()").Scan(&before); err != nil {
		t.Fatal(err)
	}
	mustExec(t, super, "SELECT pg_reload_conf()")
	for now = before; !now.After(before); {
		if err := super.QueryRow(t.Context(), "SELECT pg_conf_load_time()").Scan(&now); err != nil {
			t.Fatal(err)
		}
	}
}

// A second host in the connection string that does not respond makes no sidecar unfit, though its
// ways in are tried too.
func TestHostThatIsDeadMakesNobodyUnfit(t *testing.T) {
	r := newRepository(t, "a")
	dead, err := net.Listen("tcp", "127.0.0.1:0") // accepts connections and never responds
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close() //nolint:errcheck // of a test
	cfg := r.config("a")
	cfg.DSN = strings.Replace(cfg.DSN, "/"+r.database+"?", ","+dead.Addr().String()+"/"+r.database+"?", 1)
	a, err := NewFence(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Shutdown)
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), longEnough)
		late, begun := testbed.Lateness(t), time.Now()
		if err := a.Ready(ctx); err != nil {
			t.Error(err)
		}
		cancel()
		if took := time.Since(begun); took > 2*time.Second+late() { // as the sidecar's fitness has it
			t.Errorf("ready after %v", took)
		}
	}
}

// swallower is a proxy that can stop forwarding without closing anything.
type swallower struct {
	listener net.Listener
	mu       sync.Mutex
	deaf     []chan struct{} // one for each connection, closed once it forwards nothing
	taken    atomic.Int64
}

func newSwallower(t *testing.T, target string) *swallower {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &swallower{listener: l}
	var running sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); running.Wait() })
	running.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				_ = client.Close()
				continue
			}
			s.taken.Add(1)
			deaf := make(chan struct{})
			s.mu.Lock()
			s.deaf = append(s.deaf, deaf)
			s.mu.Unlock()
			context.AfterFunc(t.Context(), func() { _ = client.Close(); _ = server.Close() })
			pass := func(to, from net.Conn) {
				buf := make([]byte, 1<<16)
				for {
					n, err := from.Read(buf)
					if err != nil {
						_ = to.Close()
						return
					}
					select {
					case <-deaf:
					default:
						_, _ = to.Write(buf[:n])
					}
				}
			}
			running.Go(func() { pass(server, client) })
			running.Go(func() { pass(client, server) })
		}
	})
	return s
}

// swallow makes all current connections forward nothing.
func (s *swallower) swallow() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, deaf := range s.deaf {
		close(deaf)
	}
	s.deaf = nil
}

func (s *swallower) dsn(r *repository, name string) string {
	return fmt.Sprintf("postgres://%s:sidecar-%s@%s/%s?sslmode=disable", r.sidecar(name), name, s.listener.Addr(), r.database)
}

// A warm connection that swallows data costs half a second, not the whole timeout.
func TestConnectionThatSwallowsIsHedged(t *testing.T) {
	r := newRepository(t, "a")
	proxy := newSwallower(t, net.JoinHostPort(r.server.Host, fmt.Sprint(r.server.Port)))
	cfg := r.config("a")
	cfg.DSN = proxy.dsn(r, "a")
	a, err := NewFence(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Shutdown)
	if err := a.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	proxy.swallow()
	ctx, cancel := context.WithTimeout(t.Context(), longEnough)
	defer cancel()
	late, begun := testbed.Lateness(t), time.Now()
	env, err := a.Raise(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 3*time.Second+late() {
		t.Errorf("raised in %v", took)
	} else {
		t.Logf("raised in %v", took)
	}
	r.mustLogin("a", password(t, env))
	proxy.swallow()
	late, begun = testbed.Lateness(t), time.Now()
	if err := a.Close(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 3*time.Second+late() {
		t.Errorf("closed in %v", took)
	}
}

// A begin that a connection swallowed and that arrives late does not undo the term that its twin
// opened.
func TestLateTwinOfABeginChangesNothing(t *testing.T) {
	r := newRepository(t, "a")
	a := r.fence("a")
	var proof string
	sc := connect(t, a.cfg.DSN)
	v, err := verifier("of the program")
	if err != nil {
		t.Fatal(err)
	}
	proof = v
	begin := func() error {
		_, err := sc.Exec(t.Context(), "SELECT tanist.begin($1, 5, 1, $2)", r.cluster, proof)
		return err
	}
	if err := begin(); err != nil {
		t.Fatal(err)
	}
	if err := begin(); err != nil {
		t.Errorf("the twin, while the term is begun: %v", err)
	}
	if _, err := sc.Exec(t.Context(), "SELECT tanist.open($1, 5, 1, 0, $2)", r.cluster, proof); err != nil {
		t.Fatal(err)
	}
	if err := begin(); err != nil {
		t.Errorf("the twin, when the term is open: %v", err)
	}
	r.mustLogin("a", "of the program")
	if err := a.Assert(t.Context(), 5); err != nil {
		t.Error(err)
	}
}

// The connection string is reread when the file changes and before each new connection.
func TestConnectionStringIsReadAgain(t *testing.T) {
	r := newRepository(t, "a")
	var dsn atomic.Pointer[string]
	set := func(s string) { dsn.Store(&s) }
	cfg := r.config("a")
	set(cfg.DSN)
	cfg.ReadDSN = func() (string, error) {
		if s := *dsn.Load(); s != "" {
			return s, nil
		}
		return "", errors.New("the file is gone")
	}
	a, err := NewFence(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Shutdown)
	ready := func(when string) {
		t.Helper()
		if err := a.Ready(t.Context()); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	lose := func() {
		t.Helper()
		mustExec(t, r.super, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '"+r.sidecar("a")+"'")
	}
	ready("at first")
	set("not a connection string")
	ready("a file that can't be read changes nothing")
	set("")
	ready("a file that is gone changes nothing")
	set(r.server.DSN(r.sidecar("a"), "the-next", r.database))
	ready("the file is ahead of the server")
	lose()
	ready("the file is ahead of the server, and the connection is lost")
	mustExec(t, r.super, "ALTER ROLE "+r.sidecar("a")+" PASSWORD 'the-next'")
	ready("both have changed")
	lose()
	ready("both have changed, and the connection is lost")
	mustExec(t, r.super, "ALTER ROLE "+r.sidecar("a")+" PASSWORD 'the-last'")
	lose()
	if err := a.Ready(t.Context()); err == nil {
		t.Error("a password that is wrong on both sides is good")
	}
	raised := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), longEnough)
		defer cancel()
		_, err := a.Raise(ctx, 1)
		raised <- err
	}()
	set(r.server.DSN(r.sidecar("a"), "the-last", r.database))
	if err := <-raised; err != nil {
		t.Errorf("a takeover that began before the file was right: %v", err)
	}
	// A string with another address while the old connection is healthy.
	other := newRepository(t, "a")
	set(other.server.DSN(other.sidecar("a"), "sidecar-a", other.database))
	if err := a.Ready(t.Context()); err == nil {
		t.Error("the old connection is used though the string leads elsewhere")
	}
}

// The server detects a dead connection of a sidecar within seconds.
func TestServerNoticesDeadSidecars(t *testing.T) {
	r := newRepository(t, "a")
	a := r.fence("a")
	settings, err := ask(t.Context(), a.link, func(ctx context.Context, conn *pgx.Conn) (s [3]int, err error) {
		return s, conn.QueryRow(ctx, `SELECT current_setting('tcp_keepalives_idle')::int, current_setting('tcp_keepalives_interval')::int,
			(SELECT setting::int FROM pg_settings WHERE name = 'tcp_user_timeout')`).Scan(&s[0], &s[1], &s[2])
	})
	if err != nil {
		t.Fatal(err)
	}
	if settings[0] > 10 || settings[1] > 5 || settings[2] == 0 || settings[2] > 20000 {
		t.Errorf("keepalive after %d s, every %d s; unacknowledged data for %d ms", settings[0], settings[1], settings[2])
	}
}

// If nothing old is left, a raise takes three statements: each is a round trip without service.
func TestRaiseTakesThreeStatements(t *testing.T) {
	r := newRepository(t, "a")
	cfg := r.config("a")
	var report Report
	cfg.Observe = func(r Report) { report = r }
	a, err := NewFence(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Shutdown)
	opened := 0
	a.step = func(step string) error {
		if step == "open" {
			opened++
		}
		return nil
	}
	for term := election.Term(1); term < 4; term++ {
		opened = 0
		r.raise(a, term)
		if report.Attempts != 1 || report.Looks != 1 || opened != 1 || report.Stalled != 0 {
			t.Errorf("%d calls of open, %+v", opened, report)
		}
	}
}

// A login that stopped in the middle of SCRAM stays outside when it continues in the next term,
// whatever the password was when it began: the last term's, or one that a session of the last term
// set after begin, and perhaps took back.
func TestLoginThatBeganEarlierStaysOutside(t *testing.T) {
	for _, c := range []struct {
		name   string
		frozen bool // a session does not receive the signal to end until "end"
		steps  map[string]string
	}{
		{"old password", false, map[string]string{"begin 1": "login"}},
		{"changed, login before the drain", true, map[string]string{"drain 1": "change login end"}},
		{"changed, login before open", true, map[string]string{"drain 1": "change end", "open 1": "login"}},
		{"changed, login before the next attempt", true, map[string]string{"drain 1": "change end", "begin 2": "login"}},
		{"changed and taken back", true, map[string]string{"drain 1": "change", "drain 2": "login back end"}},
		// The stalled client stands for one that becomes a session and ends between two rounds.
		{"changed and taken back by a session that was starting", false, map[string]string{"drain 1": "stall", "drain 2": "change login back leave"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRepository(t, "a")
			a := r.fence("a")
			secret := r.raise(a, 1)
			session := 0
			if c.frozen {
				session = int(r.mustLogin("a", secret).PgConn().PID())
				stopProcess(t, session)
				t.Cleanup(func() { continueProcess(session) })
			}
			resume, login := make(chan struct{}), make(chan error, 1)
			var original string
			var stalled net.Conn
			begun := false
			// The changes are the effects of a session's own ALTER ROLE, which can't be timed from
			// outside.
			act := map[string]func(){
				"change": func() {
					if err := r.super.QueryRow(t.Context(), "SELECT rolpassword FROM pg_authid WHERE rolname = $1", r.role("a")).Scan(&original); err != nil {
						t.Fatal(err)
					}
					secret = "known to the old process"
					proof, err := verifier(secret)
					if err != nil {
						t.Fatal(err)
					}
					mustExec(t, r.super, "ALTER ROLE "+r.role("a")+" PASSWORD '"+proof+"'")
				},
				"back":  func() { mustExec(t, r.super, "ALTER ROLE "+r.role("a")+" PASSWORD '"+original+"'") },
				"end":   func() { continueProcess(session); r.gone(session) },
				"login": func() { startLogin(t, r, "a", secret, resume, login); begun = true },
				"stall": func() { stalled = stall(t, r, "a_stranger") },
				"leave": func() { _ = stalled.Close() },
			}
			count := map[string]int{}
			a.step = func(step string) error {
				count[step]++
				for name := range strings.FieldsSeq(c.steps[fmt.Sprintf("%s %d", step, count[step])]) {
					act[name]()
				}
				return nil
			}
			next := r.raise(a, 2)
			close(resume)
			if !begun {
				t.Fatal("the term was open before the login began")
			}
			if err := <-login; err == nil {
				t.Error("a login that began before the term was open is in")
			}
			if _, err := r.login("a", secret); err == nil {
				t.Error("the password of an older process is good")
			}
			r.mustLogin("a", next)
		})
	}
}

// startLogin begins a login, and returns when it has stopped in the middle of SCRAM, after the
// server has read the password. It continues when resume is closed, and done receives its result.
func startLogin(t *testing.T, r *repository, name, secret string, resume <-chan struct{}, done chan<- error) {
	t.Helper()
	cfg, err := pgx.ParseConfig(r.server.DSN(r.role(name), secret, r.database))
	if err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		return &slowConn{Conn: conn, before: func(n int, p []byte) (int, func()) {
			if n != 3 { // start-up, the first message of SCRAM, the proof
				return len(p), nil
			}
			return 0, func() { close(stopped); <-resume }
		}}, err
	}
	go func() {
		conn, err := pgx.ConnectConfig(t.Context(), cfg)
		if err == nil {
			_ = conn.Close(context.Background())
		}
		done <- err
	}()
	select {
	case <-stopped:
	case <-t.Context().Done():
	case <-time.After(longEnough):
		t.Fatal("the login did not reach its proof")
	}
}

// An operator changes the password while open is under way: open does not lose the race, and the
// term begins again.
func TestPasswordChangedDuringOpen(t *testing.T) {
	r := newRepository(t, "a")
	a := r.fence("a")
	r.raise(a, 1)
	known, err := verifier("set from outside")
	if err != nil {
		t.Fatal(err)
	}
	other := connect(t, r.server.SuperDSN(r.database))
	committed := make(chan error, 1)
	opens := 0
	a.step = func(step string) error {
		if step != "open" {
			return nil
		}
		if opens++; opens > 1 {
			return nil
		}
		mustExec(t, other, "BEGIN")
		mustExec(t, other, "ALTER ROLE "+r.role("a")+" PASSWORD '"+known+"'")
		go func() { committed <- commitWhenAwaited(t.Context(), r, other) }()
		return nil
	}
	two := r.raise(a, 2)
	if err := <-committed; err != nil {
		t.Fatal(err)
	}
	if opens != 2 {
		t.Errorf("opened in %d attempts", opens)
	}
	if _, err := r.login("a", "set from outside"); err == nil {
		t.Error("somebody else knows the password of the new term")
	}
	r.mustLogin("a", two)
}

// commitWhenAwaited commits the transaction of conn when a sidecar waits for it.
func commitWhenAwaited(ctx context.Context, r *repository, conn *pgx.Conn) error {
	for waiting := false; !waiting; {
		if err := r.super.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock')", application).Scan(&waiting); err != nil {
			return err
		}
	}
	_, err := conn.Exec(ctx, "COMMIT")
	return err
}

// An open that was sent twice, and whose twin arrives when the next attempt of the term has begun,
// opens nothing: the barrier of that attempt has not been passed yet.
func TestLateOpenOfAnEarlierAttemptIsRefused(t *testing.T) {
	r := newRepository(t, "a")
	a := r.fence("a")
	r.raise(a, 1)
	sc := connect(t, a.cfg.DSN)
	proof, err := verifier("of the program")
	if err != nil {
		t.Fatal(err)
	}
	call := func(sql string, attempt int) string {
		_, err := sc.Exec(t.Context(), "SELECT tanist."+sql, r.cluster, attempt, proof)
		code, _ := refusal(err)
		return code
	}
	const begin, open = "begin($1, 2, $2, $3)", "open($1, 2, $2, 0, $3)"
	if code := call(begin, 1); code != "" {
		t.Fatal(code)
	}
	mustExec(t, r.super, "ALTER ROLE "+r.role("a")+" PASSWORD 'another'")
	if code := call(open, 1); code != stateAgain {
		t.Errorf("the password was changed: %q", code)
	}
	if code := call(begin, 2); code != "" {
		t.Fatal(code)
	}
	if code := call(open, 1); code != stateOvertaken || len(r.loginsAllowed()) != 0 {
		t.Errorf("the open of the first attempt: %q, may log in: %v", code, r.loginsAllowed())
	}
	if code := call(open, 2); code != "" {
		t.Errorf("the open of the second attempt: %q", code)
	}
}
