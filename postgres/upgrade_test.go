package postgres

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// A repository of the first revision with an open term is upgraded by init: the open term
// continues, its program notices nothing, and the next term is fenced as usual. Before init, a
// sidecar of this revision reports what to do.
func TestInitUpgradesTheFirstRevision(t *testing.T) {
	server, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	n := repositories.Add(1)
	r := &repository{t: t, server: server, database: fmt.Sprintf("app%d", n), cluster: fmt.Sprintf("orders-%d", n), names: []string{"a", "b"}}
	mustExec(t, connect(t, server.SuperDSN("postgres")), "CREATE DATABASE "+r.database)
	r.super = connect(t, server.SuperDSN(r.database))
	old, err := os.ReadFile("testdata/revision1.sql")
	if err != nil {
		t.Fatal(err)
	}
	sql := strings.NewReplacer("@CLUSTER@", r.cluster, "@APP@", r.app(), "@ROLE_A@", r.role("a"), "@ROLE_B@", r.role("b"),
		"@SC_A@", r.sidecar("a"), "@SC_B@", r.sidecar("b")).Replace(string(old))
	if _, err := r.super.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
		t.Fatal(err)
	}
	mustExec(t, r.super, "CREATE TABLE work (id bigserial PRIMARY KEY, term bigint NOT NULL, writer text NOT NULL); ALTER TABLE work OWNER TO "+r.app())
	proof, err := verifier("of term 3")
	if err != nil {
		t.Fatal(err)
	}
	sidecar := connect(t, server.DSN(r.sidecar("a"), "sidecar-a", r.database))
	for _, sql := range []string{"SELECT tanist.begin($1, 3, 1, $2)", "SELECT tanist.open($1, 3, 1, 0)"} {
		args := []any{r.cluster, proof}[:strings.Count(sql, "$")]
		if _, err := sidecar.Exec(t.Context(), sql, append([]any{pgx.QueryExecModeSimpleProtocol}, args...)...); err != nil {
			t.Fatal(err)
		}
	}
	program := r.mustLogin("a", "of term 3")
	b := r.fence("b")
	if err := b.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "repository init") {
		t.Errorf("fitness before init: %v", err)
	}
	a := r.fence("a")
	if err := a.Assert(t.Context(), 3); err != nil {
		t.Errorf("the open term before init: %v", err)
	}
	if err := Init(t.Context(), server.SuperDSN(r.database), r.setup()); err != nil {
		t.Fatal(err)
	}
	if err := a.Assert(t.Context(), 3); err != nil {
		t.Errorf("the open term after init: %v", err)
	}
	if err := insert(t.Context(), program, 3, "a"); err != nil {
		t.Errorf("the program of the open term: %v", err)
	}
	if err := b.Ready(t.Context()); err != nil {
		t.Errorf("fitness after init: %v", err)
	}
	r.mustLogin("b", r.raise(b, 4))
	if err := insert(t.Context(), program, 3, "a"); err == nil {
		t.Error("the old term writes on")
	}
	_ = program.Close(context.Background())
}
