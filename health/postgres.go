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

// Postgres is the check that a database answers SELECT 1. The DSN (URL or key=value form) is the content of dsnFile and is
// read again before each new connection, so a secret may change. One connection is kept from run to run, since logging in costs
// both sides far more than the question; after a failure the next run makes a new one. The check is returned with
// its Close.
func Postgres(name, dsnFile string) (Check, error) {
	if dsnFile == "" {
		return Check{}, errors.New("no DSN file is named")
	}
	p := &pgCheck{dsnFile: dsnFile}
	return Check{Name: name, Run: p.run, Close: p.close}, nil
}

type pgCheck struct {
	dsnFile string
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
	cfg, err := pgx.ParseConfig(strings.TrimSpace(string(b)))
	if err != nil {
		// The parser's own words may quote the secret.
		return nil, fmt.Errorf("cannot read the DSN: %s does not hold a PostgreSQL DSN", p.dsnFile)
	}
	cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol // a pooler in between may not know prepared statements
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
