package health

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Postgres returns a check that succeeds if a database answers SELECT 1, with its Close. The DSN
// (URL or key=value form) is the content of dsnFile, which is reread before each new connection, so
// a secret may change. The check keeps one connection from run to run, because a login costs both
// sides far more than the query; after a failure the next run opens a new one.
//
// accept, if not nil, returns why a DSN must not be used. A part of the DSN that it misses may
// appear in errors as a host name.
func Postgres(name, dsnFile string, accept func(dsn string) error) (Check, error) {
	if dsnFile == "" {
		return Check{}, errors.New("no DSN file is named")
	}
	p := &pgCheck{dsnFile: dsnFile, accept: accept}
	return Check{Name: name, Run: p.run, Close: p.close}, nil
}

type pgCheck struct {
	dsnFile string
	accept  func(dsn string) error
	mu      sync.Mutex
	conn    *pgx.Conn // nil: none
}

func (p *pgCheck) run(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == nil {
		conn, err := p.connect(ctx)
		if err != nil {
			return err
		}
		p.conn = conn
	}
	var one int
	err := p.conn.QueryRow(ctx, "SELECT 1").Scan(&one)
	if err == nil {
		return nil
	}
	p.drop()
	return fmt.Errorf("cannot ask the database: %v", pgCause(err))
}

func (p *pgCheck) connect(ctx context.Context) (*pgx.Conn, error) {
	b, err := os.ReadFile(p.dsnFile)
	if err != nil {
		return nil, fmt.Errorf("cannot read the DSN: %v", err)
	}
	dsn := strings.TrimSpace(string(b))
	if p.accept != nil {
		if err := p.accept(dsn); err != nil {
			return nil, fmt.Errorf("%s: %v", p.dsnFile, err)
		}
	}
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		// The parser's error may quote the secret.
		return nil, fmt.Errorf("cannot read the DSN: %s does not hold a PostgreSQL DSN", p.dsnFile)
	}
	cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol // a pooler in between may not support prepared statements
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = "tanist health"
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to the database at %s: %v", cfg.Host, pgCause(err))
	}
	return conn, nil
}

func (p *pgCheck) drop() {
	if p.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_ = p.conn.Close(ctx)
	p.conn = nil
}

func (p *pgCheck) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop()
}

func pgCause(err error) error {
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
		return fmt.Errorf("%s (SQLSTATE %s)", pe.Message, pe.Code)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.New("no answer in time")
	}
	return cause(err)
}
