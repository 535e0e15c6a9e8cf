package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/tanist/tanist/election"
)

// answer is a controller's response to a confirmed request, and to /whoami.
type answer struct {
	Name string `json:"name"`
	Term uint64 `json:"term"`
	PID  int    `json:"pid"`
	Row  int64  `json:"row,omitempty"` // the number of the row that was written
}

// controllerCommand is `tanist-lab controller`: a program that knows nothing of Tanist. It writes a
// numbered row into its repository for every request and responds when the row is committed.
func controllerCommand() *cobra.Command {
	var name, listen, database, record string
	cmd := &cobra.Command{
		Use: "controller", Short: "the lab's demo controller", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return serveController(ctx, name, listen, database, record)
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "name to show")
	cmd.Flags().StringVar(&listen, "listen", "", "address to serve on")
	cmd.Flags().StringVar(&database, "database", "", "repository, without its secret (that is in PGPASSWORD)")
	cmd.Flags().StringVar(&record, "record", "", "file to note in when it served")
	return cmd
}

// migrateCommand is `tanist-lab migrate`: the demo's migration, which Tanist runs once per term
// before the controller (run.migrate). It may run again.
func migrateCommand() *cobra.Command {
	var database string
	cmd := &cobra.Command{
		Use: "migrate", Short: "create the demo's table", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conn, err := pgx.Connect(cmd.Context(), database) // reads PGPASSWORD from the environment
			if err != nil {
				return fmt.Errorf("cannot reach the repository: %v", err)
			}
			_, err = conn.Exec(cmd.Context(), `CREATE TABLE IF NOT EXISTS lab.work
				(n bigserial PRIMARY KEY, id text NOT NULL UNIQUE, term bigint NOT NULL, controller text NOT NULL)`)
			return errors.Join(err, conn.Close(context.WithoutCancel(cmd.Context())))
		},
	}
	cmd.Flags().StringVar(&database, "database", "", "repository, without its secret (that is in PGPASSWORD)")
	return cmd
}

// demo is a running demo controller.
type demo struct {
	name   string
	term   uint64
	pool   *pgxpool.Pool
	record *syncFile
	hang   atomic.Bool
}

func serveController(ctx context.Context, name, listen, database, record string) error {
	term, err := strconv.ParseUint(os.Getenv("TANIST_TERM"), 10, 64)
	if err != nil {
		return fmt.Errorf("cannot start: TANIST_TERM: %v", err)
	}
	notes, err := appendTo(record)
	if err != nil {
		return err
	}
	cfg, err := pgxpool.ParseConfig(database) // reads PGPASSWORD from the environment
	if err != nil {
		return fmt.Errorf("cannot read --database: %v", err)
	}
	cfg.MaxConns, cfg.ConnConfig.ConnectTimeout = 8, 3*time.Second
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return fmt.Errorf("cannot use the repository: %v", err)
	}
	defer pool.Close()
	if err := pool.Ping(ctx); err != nil {
		return fmt.Errorf("cannot reach the repository: %v", err)
	}
	d := &demo{name: name, term: term, pool: pool, record: notes}

	// The port opens last: an open port means that the program is ready.
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", listen)
	if err != nil {
		return fmt.Errorf("cannot listen: %v", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /work", d.work)
	mux.HandleFunc("GET /whoami", d.whoami)
	mux.HandleFunc("GET /healthz", d.healthz)
	mux.HandleFunc("GET /{$}", d.page)
	mux.HandleFunc("POST /hang", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNoContent)
		d.hang.Store(true)
	})
	srv := &http.Server{Handler: onlyLocal(os.Getenv("LAB_ONLY_LOCAL") == "true", mux), ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	fmt.Printf("%s serves on %s, term %d, pid %d\n", name, listen, term, os.Getpid())
	select {
	case err := <-ended:
		return fmt.Errorf("cannot serve: %v", err)
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil { // requests in flight are answered first
		return errors.Join(fmt.Errorf("cannot end cleanly: %v", err), srv.Close())
	}
	return nil
}

// onlyLocal refuses requests that do not come from this host, if it is asked to. In a service mesh,
// only the mesh proxy next to the controller may reach it.
func onlyLocal(asked bool, next http.Handler) http.Handler {
	if !asked {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil || !from.Addr().Unmap().IsLoopback() {
			http.Error(w, "only through the mesh", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// stuck holds a request until its client gives up, if the program was told to hang, and reports
// whether it did. The port stays open, as in a real hang.
func (d *demo) stuck(r *http.Request) bool {
	if !d.hang.Load() {
		return false
	}
	<-r.Context().Done()
	return true
}

// served records that this process served from begun until now. The record is written before the
// reply is sent, so it exists for every reply that a client received.
func (d *demo) served(begun election.Instant) bool {
	return d.record.line("%d %d %d %d", d.term, os.Getpid(), begun, election.BootClock()) == nil
}

func (d *demo) work(w http.ResponseWriter, r *http.Request) {
	begun := election.BootClock()
	id := r.FormValue("id") // reads the body; only after that the server detects that a client gave up
	if d.stuck(r) {
		return
	}
	if id == "" || len(id) > 100 {
		http.Error(w, "an id of 1 to 100 bytes is needed", http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	// A client without a confirmation sends the same id again; it must not become a second row.
	var row int64
	err := d.pool.QueryRow(ctx, `INSERT INTO lab.work (id, term, controller) VALUES ($1, $2, $3)
		ON CONFLICT (id) DO NOTHING RETURNING n`, id, int64(d.term), d.name).Scan(&row)
	if errors.Is(err, pgx.ErrNoRows) {
		err = d.pool.QueryRow(ctx, "SELECT n FROM lab.work WHERE id = $1", id).Scan(&row)
	}
	if err != nil {
		http.Error(w, "cannot write: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	d.reply(w, begun, row)
}

func (d *demo) whoami(w http.ResponseWriter, r *http.Request) {
	begun := election.BootClock()
	if d.stuck(r) {
		return
	}
	d.reply(w, begun, 0)
}

func (d *demo) reply(w http.ResponseWriter, begun election.Instant, row int64) {
	if !d.served(begun) {
		http.Error(w, "cannot note that this was served", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer{Name: d.name, Term: d.term, PID: os.Getpid(), Row: row}) // the client may have gone
}

func (d *demo) healthz(w http.ResponseWriter, r *http.Request) {
	if d.stuck(r) {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), time.Second)
	defer cancel()
	if err := d.pool.Ping(ctx); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

var page = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="1"><title>{{.Name}}</title>
<style>body{font:1.2rem system-ui;margin:15vh auto;max-width:34rem;text-align:center;color:#222}b{font-size:3rem;display:block}</style></head>
<body><b>{{.Name}}</b>is active, term {{.Term}}<p>{{.Row}} rows in the repository</p></body></html>
`))

func (d *demo) page(w http.ResponseWriter, r *http.Request) {
	begun := election.BootClock()
	if d.stuck(r) {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	a := answer{Name: d.name, Term: d.term}
	if err := d.pool.QueryRow(ctx, "SELECT count(*) FROM lab.work").Scan(&a.Row); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	if d.served(begun) {
		_ = page.Execute(w, a) // the client may have gone
	}
}
