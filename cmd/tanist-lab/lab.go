package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"text/template"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/postgres"
	"github.com/tanist/tanist/postgres/private"
)

// cluster is the name of the lab's cluster; its keys are under prefix.
const (
	cluster = "lab"
	prefix  = "/" + election.RootPath + "/" + cluster + "/"
)

// options are the command line.
type options struct {
	scenarios []string
	runs      int
	keep      bool
	profile   string
	store     string
	storeLoss string
	json      string
	tanist    string
	dir       string
	probe     time.Duration
	quiet     bool
}

// storeLosses are the policies of an active while the store is away.
var storeLosses = []election.StoreLoss{election.StoreLossStop, election.StoreLossFailsafe, election.StoreLossKeep}

func (o options) check() error {
	for _, s := range o.scenarios {
		if s != "none" && !slices.Contains(scenarioNames(), s) {
			return &usageError{fmt.Sprintf("unknown scenario %q: it is one of %s, none", s, strings.Join(scenarioNames(), ", "))}
		}
	}
	switch {
	case o.runs < 1:
		return &usageError{fmt.Sprintf("--runs %d: it must be at least 1", o.runs)}
	case o.profile != election.ProfileFast && o.profile != election.ProfileDefault:
		return &usageError{fmt.Sprintf("unknown profile %q: it is fast or default", o.profile)}
	case !slices.Contains([]string{"etcd", "consul", "postgres"}, o.store):
		return &usageError{fmt.Sprintf("unknown store %q: it is etcd, consul or postgres", o.store)}
	case !slices.Contains(storeLosses, election.StoreLoss(o.storeLoss)):
		return &usageError{fmt.Sprintf("unknown --on-store-loss %q: it is stop, failsafe or keep", o.storeLoss)}
	case o.probe < time.Millisecond || o.probe > time.Second:
		return &usageError{fmt.Sprintf("--probe %v: it must be from 1ms to 1s", o.probe)}
	}
	return nil
}

// side is one "host": a sidecar with its controller and their parts.
type side struct {
	Name      string `json:"name"`
	URL       string `json:"url"`
	API       string `json:"api"`
	Config    string `json:"config"`
	listen    string
	apiListen string
	check     string
	sidecar   *proc
	direct    *prober
}

// agent is a demo agent with its agentwatch.
type agent struct {
	name   string
	config string
	listen string
	watch  *proc
}

// lab is the whole running lab.
type lab struct {
	opts   options
	dir    string // of all files
	self   string
	tanist string
	out    *printer

	store      store
	repository *private.Server
	super      string // connection string of the repository's superuser
	proxy      *proc
	proxyFile  string
	virtualURL string
	sides      []*side
	agents     []*agent
	virtual    *prober
	story      *story
	frozen     []int // frozen by a scenario
}

func (l *lab) path(parts ...string) string {
	return filepath.Join(append([]string{l.dir}, parts...)...)
}

// labMain sets up the lab, runs the tour and tears the lab down.
func labMain(ctx context.Context, dir string, o options) (err error) {
	// Orphans (a controller whose sidecar was killed) become children of this process, so that it
	// can find and end them.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot become a subreaper: %v", err)
	}
	l := &lab{opts: o, dir: dir, out: newPrinter(os.Stdout, o.quiet)}
	for _, d := range []string{"tmp", "log", "records", "run"} {
		if err := os.Mkdir(l.path(d), 0o755); err != nil {
			return fmt.Errorf("cannot set the lab up: %v", err)
		}
	}
	if err := os.Setenv("TMPDIR", l.path("tmp")); err != nil {
		return fmt.Errorf("cannot set the lab up: %v", err)
	}
	if l.self, err = os.Executable(); err != nil {
		return fmt.Errorf("cannot find the path of this program: %v", err)
	}

	background, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { reapOrphans(background) })
	defer func() {
		stop()
		wg.Wait()
		l.down()
	}()
	if err := l.up(ctx); err != nil {
		return l.explain(err)
	}
	wg.Go(func() { l.virtual.run(background) })
	for _, s := range l.sides {
		wg.Go(func() { s.direct.run(background) })
	}
	wg.Go(func() { l.story.watch(background, l.store, l.out) })

	wg.Go(func() { l.watch(background) })

	if _, err := l.healthy(ctx, 0); err != nil {
		return l.explain(err)
	}
	if err := l.list(ctx); err != nil {
		return l.explain(err)
	}
	if err := l.writeFacts(); err != nil {
		return err
	}
	results, err := l.tour(ctx)
	if err != nil {
		return l.explain(err)
	}
	if len(results.Runs) > 0 {
		if err := l.list(ctx); err != nil {
			return l.explain(err)
		}
	}
	l.out.results(results, l)
	if o.json != "" {
		if err := writeJSON(o.json, results); err != nil {
			return err
		}
	}
	if o.keep {
		l.out.keep(l)
		l.stay(ctx)
	}
	if !results.OK {
		return l.explain(fmt.Errorf("a guarantee was broken: %s", strings.Join(results.Broken, "; ")))
	}
	return nil
}

// list prints the operator's view.
func (l *lab) list(ctx context.Context) error {
	picture, err := l.picture(ctx)
	if err == nil {
		l.out.section("The cluster")
		l.out.command("tanist list", picture)
	}
	return err
}

// stay waits for Ctrl-C. Memory does not grow meanwhile.
func (l *lab) stay(ctx context.Context) {
	ticker := time.NewTicker(time.Minute)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			cut := election.BootClock().Add(-time.Minute)
			l.virtual.forget(cut)
			for _, s := range l.sides {
				s.direct.forget(cut)
			}
		}
	}
}

// up starts everything in the order of dependencies.
func (l *lab) up(ctx context.Context) error {
	begun := time.Now()
	var err error
	if l.tanist, err = findTanist(ctx, l.opts.tanist, l.dir); err != nil {
		return err
	}
	ports, err := freePorts(12)
	if err != nil {
		return err
	}
	next := func() string { p := ports[0]; ports = ports[1:]; return p }

	l.store = l.newStore("http://"+next(), "http://"+next())
	for _, name := range []string{"a", "b"} {
		s := &side{Name: "ctl-" + name, listen: next(), apiListen: next(), check: next(), Config: l.path("ctl-" + name + ".yml")}
		s.URL, s.API = "http://"+s.listen, "http://"+s.apiListen
		s.direct = newDirectProber(s.Name, s.URL, 2*l.opts.probe)
		l.sides = append(l.sides, s)
	}
	for _, name := range []string{"agt-1", "agt-2"} {
		l.agents = append(l.agents, &agent{name: name, config: l.path(name + ".yml"), listen: next()})
	}
	virtual, proxyListen := next(), ""
	if more, err := freePorts(1); err == nil {
		proxyListen = more[0]
	}
	l.virtualURL, l.proxyFile = "http://"+virtual, l.path("proxy.yml")
	notes, err := appendTo(l.path("records", "confirmed-user"))
	if err != nil {
		return err
	}
	l.virtual = newVirtualProber(l.virtualURL, l.opts.probe, notes, nil)
	l.story = &story{}

	if err := l.repositoryUp(ctx); err != nil {
		return err
	}
	if err := l.store.start(ctx); err != nil {
		return err
	}
	l.out.step("HAProxy")
	if err := l.writeConfigs(virtual, proxyListen); err != nil {
		return err
	}
	if l.proxy, err = spawn(l.path("log"), "proxy", l.tanist, []string{"haproxy", "-c", l.proxyFile}, nil); err != nil {
		return err
	}
	l.out.step("two controllers with their sidecars, two agents with their agentwatch")
	for _, s := range l.sides {
		if err := l.startSidecar(s); err != nil {
			return err
		}
		if s == l.sides[0] { // the first one must become active
			if err := wait(ctx, 30*time.Second, s.Name+" to serve", func(ctx context.Context) error {
				if !s.sidecar.alive() {
					return finalError{fmt.Errorf("its sidecar ended: %v", s.sidecar.cmd.ProcessState)}
				}
				v, err := l.view(ctx)
				if err == nil && !v.active.Serving() {
					err = errors.New("nobody is serving")
				}
				return err
			}); err != nil {
				return err
			}
		}
	}
	for _, a := range l.agents {
		if a.watch, err = spawn(l.path("log"), a.name, l.tanist, []string{"agentwatch", "-c", a.config}, nil); err != nil {
			return err
		}
	}
	l.out.step(fmt.Sprintf("all up in %.1f s, in %s", time.Since(begun).Seconds(), l.dir))
	return nil
}

// newStore returns the store that was asked for, not started yet. The addresses are for etcd.
func (l *lab) newStore(client, peer string) store {
	switch l.opts.store {
	case "postgres":
		l.out.step("PostgreSQL, which is the store too")
		return &postgresStore{lab: l}
	case "consul":
		l.out.step("consul, PostgreSQL")
		return &consulStore{dir: l.path("consul")}
	}
	l.out.step("etcd, PostgreSQL")
	return &etcdStore{self: l.self, dir: l.path("etcd"), logs: l.path("log"), client: client, peer: peer}
}

// repositoryUp starts PostgreSQL and prepares the fence and the demo's table.
func (l *lab) repositoryUp(ctx context.Context) error {
	var err error
	l.repository, err = private.Start(ctx, private.Options{Settings: map[string]string{
		"wal_keep_size": "2GB", // the judge reads the log from the beginning of a scenario
	}})
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, l.repository.SuperDSN("postgres"))
	if err != nil {
		return fmt.Errorf("cannot prepare the repository: %v", err)
	}
	_, err = conn.Exec(ctx, "CREATE DATABASE lab")
	if err = errors.Join(err, conn.Close(ctx)); err != nil {
		return fmt.Errorf("cannot prepare the repository: %v", err)
	}
	l.super = l.repository.SuperDSN("lab")
	setup := postgres.SetupOptions{Cluster: cluster, AppRole: "lab_app", AppSchema: "lab"}
	for _, s := range l.sides {
		login, secret := "sidecar_"+strings.TrimPrefix(s.Name, "ctl-"), rand.Text()
		setup.Controllers = append(setup.Controllers, postgres.SetupController{Name: s.Name, Role: s.role(), Sidecar: login, SidecarPassword: secret})
		if err := os.WriteFile(l.path(s.Name+".dsn"), []byte(l.repository.DSN(login, secret, "lab")+"\n"), 0o600); err != nil {
			return fmt.Errorf("cannot prepare the repository: %v", err)
		}
	}
	if err := postgres.Init(ctx, l.super, setup); err != nil {
		return err
	}
	if conn, err = pgx.Connect(ctx, l.super); err != nil {
		return fmt.Errorf("cannot prepare the repository: %v", err)
	}
	_, err = conn.Exec(ctx, `CREATE EXTENSION pg_walinspect;
		SET ROLE lab_app;
		CREATE TABLE lab.work (n bigserial PRIMARY KEY, id text NOT NULL UNIQUE, term bigint NOT NULL, controller text NOT NULL)`)
	if err = errors.Join(err, conn.Close(ctx)); err != nil {
		return fmt.Errorf("cannot prepare the repository: %v", err)
	}
	return nil
}

func (s *side) role() string { return "lab_" + strings.ReplaceAll(s.Name, "-", "_") }

func (l *lab) startSidecar(s *side) error {
	var err error
	s.sidecar, err = spawn(l.path("log"), s.Name, l.tanist, []string{"sidecar", "-c", s.Config}, nil)
	return err
}

var configs = template.Must(template.New("").Parse(`
{{define "controller"}}kind: controller
cluster: {{.Cluster}}
name: {{.Name}}
{{.Store}}
lease: {profile: {{.Profile}}}
on_store_loss: {{.StoreLoss}}
{{- if eq .StoreLoss "failsafe"}}
failsafe: {secret_file: {{.Dir}}/failsafe}
{{- end}}
run:
  command: ["{{.Self}}", controller, --name, {{.Name}}, --listen, "{{.Listen}}", --database, "{{.Database}}", --record, "{{.Record}}"]
  url: {{.URL}}
  start_timeout: 15s
  stop_timeout: 1s
health:
{{- if eq .Profile "fast"}}
  interval: 200ms
  timeout: 300ms
  fall: 2
{{- end}}
  checks:
    - {name: http, http: "{{.URL}}/healthz"}
repository:
  dsn_file: {{.DSNFile}}
  role: {{.Role}}
  secret: {env: PGPASSWORD}
yield_wait: 10s
state_dir: {{.Dir}}/run
listen: {http: "{{.API}}", agent_check: "{{.Check}}", admin: "unix:{{.Admin}}"}
log: {level: info, format: console}
{{end}}
{{define "agent"}}kind: agent
cluster: {{.Cluster}}
name: {{.Name}}
{{.Store}}
run:
  command: ["{{.Self}}", agent, --name, {{.Name}}, --server, "{{"{{ .Active.URL }}"}}", --record, "{{.Record}}"]
  stop_timeout: 2s
controllers: [{{range $i, $u := .Controllers}}{{if $i}}, {{end}}"{{$u}}"{{end}}]
retries: {count: 30, every: 1s}
listen: {http: "{{.API}}"}
log: {level: info, format: console}
{{end}}
{{define "haproxy"}}kind: haproxy
cluster: {{.Cluster}}
{{.Store}}
controllers: [{{range $i, $u := .Controllers}}{{if $i}}, {{end}}"{{$u}}"{{end}}]
haproxy:
  config: {{.Dir}}/haproxy.cfg
  bind: "{{.Listen}}"
  admin_socket: {{.Dir}}/run/admin.sock
  master_socket: {{.Dir}}/run/master.sock
  spawn: true
listen: {http: "{{.API}}"}
log: {level: info, format: console}
{{end}}`))

// writeConfigs writes the configuration files of the sidecars, agentwatches and the proxy. They
// contain nothing special to the lab.
func (l *lab) writeConfigs(virtual, proxyListen string) error {
	write := func(name, kind string, data map[string]any) error {
		data["Cluster"], data["Store"], data["Profile"], data["Self"], data["Dir"] = cluster, l.store.config(), l.opts.profile, l.self, l.dir
		data["StoreLoss"] = l.opts.storeLoss
		var b strings.Builder
		if err := configs.ExecuteTemplate(&b, kind, data); err != nil {
			return fmt.Errorf("cannot write %s: %v", name, err)
		}
		if err := os.WriteFile(name, []byte(strings.TrimSpace(b.String())+"\n"), 0o644); err != nil {
			return fmt.Errorf("cannot write a configuration: %v", err)
		}
		return nil
	}
	errs := []error{os.WriteFile(l.path("failsafe"), []byte(rand.Text()), 0o600)}
	var urls []string
	for _, s := range l.sides {
		urls = append(urls, s.URL)
		errs = append(errs, write(s.Config, "controller", map[string]any{
			"Name": s.Name, "Listen": s.listen, "URL": s.URL, "API": s.apiListen, "Check": s.check,
			"Database": l.repository.DSN(s.role(), "", "lab"), "Record": l.path("records", "served-"+s.Name),
			"DSNFile": l.path(s.Name + ".dsn"), "Role": s.role(), "Admin": l.path("run", s.Name+".sock"),
		}))
	}
	for _, a := range l.agents {
		errs = append(errs, write(a.config, "agent", map[string]any{
			"Name": a.name, "Record": l.path("records", "confirmed-"+a.name), "API": a.listen, "Controllers": urls,
		}))
	}
	errs = append(errs, write(l.proxyFile, "haproxy", map[string]any{"Listen": virtual, "API": proxyListen, "Controllers": urls}))
	return errors.Join(errs...)
}

// down ends everything in the reverse order of dependencies, and then whatever remains.
func (l *lab) down() {
	var wg sync.WaitGroup
	for _, p := range slices.Concat([]*proc{l.proxy}, l.watches(), l.sidecars()) {
		if p != nil {
			wg.Go(func() { p.stop(syscall.SIGTERM, 5*time.Second) })
		}
	}
	wg.Wait()
	if l.store != nil {
		l.store.close()
	}
	if l.repository != nil {
		if err := l.repository.Stop(); err != nil {
			fmt.Fprintf(os.Stderr, "tanist-lab: %v\n", err)
		}
	}
	sweep(nil)
}

// processes returns the started processes.
func (l *lab) processes() []*proc {
	all := slices.Concat([]*proc{l.proxy}, l.watches(), l.sidecars())
	if l.store != nil {
		all = append(all, l.store.process())
	}
	return slices.DeleteFunc(all, func(p *proc) bool { return p == nil })
}

func (l *lab) watches() (all []*proc) {
	for _, a := range l.agents {
		all = append(all, a.watch)
	}
	return all
}

func (l *lab) sidecars() (all []*proc) {
	for _, s := range l.sides {
		all = append(all, s.sidecar)
	}
	return all
}

// explain adds the last output of the processes to an error.
func (l *lab) explain(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	var b strings.Builder
	for _, p := range l.processes() {
		state := ""
		if !p.alive() {
			state = " (ended: " + p.cmd.ProcessState.String() + ")"
		}
		fmt.Fprintf(&b, "\n--- %s%s\n%s", p.name, state, p.tail(25))
	}
	return fmt.Errorf("%w\nThe end of each process's log:%s", err, b.String())
}

// facts are the data that an outside check of a running lab needs; they are in lab.json in the
// lab's directory.
type facts struct {
	VirtualURL string         `json:"virtual_url"`
	Etcd       string         `json:"etcd,omitempty"`
	Consul     string         `json:"consul,omitempty"`
	Repository string         `json:"repository"`
	Tanist     string         `json:"tanist"`
	Sides      []*side        `json:"sides"`
	PIDs       map[string]int `json:"pids"`
}

func (l *lab) writeFacts() error {
	f := facts{VirtualURL: l.virtualURL, Repository: l.super, Tanist: l.tanist, Sides: l.sides, PIDs: map[string]int{}}
	switch l.opts.store {
	case "etcd":
		f.Etcd = l.store.url()
	case "consul":
		f.Consul = l.store.url()
	}
	for _, p := range l.processes() {
		f.PIDs[p.name] = p.pid()
	}
	return writeJSON(l.path("lab.json"), f)
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err == nil {
		// Readers wait for the file to appear, so it must be complete then.
		if err = os.WriteFile(path+".new", append(b, '\n'), 0o644); err == nil {
			err = os.Rename(path+".new", path)
		}
	}
	if err != nil {
		return fmt.Errorf("cannot write %s: %v", path, err)
	}
	return nil
}

// freePorts returns distinct addresses on loopback that were free a moment ago.
func freePorts(n int) ([]string, error) {
	var all []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("cannot find a free port: %v", err)
		}
		defer l.Close()
		all = append(all, l.Addr().String())
	}
	return all, nil
}

// finalError ends a wait at once.
type finalError struct{ error }

// wait calls f every 20 ms until it returns nil, and reports the last error if that takes too long.
func wait(ctx context.Context, limit time.Duration, what string, f func(context.Context) error) error {
	begun := time.Now()
	for {
		attempt, cancel := context.WithTimeout(ctx, 2*time.Second)
		err := f(attempt)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if _, final := errors.AsType[finalError](err); final || time.Since(begun) > limit {
			return fmt.Errorf("waited %.1f s for %s: %w", time.Since(begun).Seconds(), what, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// view is the cluster as the store shows it.
type view struct {
	active      *election.Active
	term        election.Breadcrumb
	controllers []election.Controller
	agents      []election.Agent
	histories   map[election.Term]election.History
}

func (l *lab) view(ctx context.Context) (view, error) {
	all, err := l.store.read(ctx)
	if err != nil {
		return view{}, fmt.Errorf("cannot read the store: %v", err)
	}
	v := view{histories: map[election.Term]election.History{}}
	for key, text := range all {
		value := []byte(text)
		switch {
		case key == election.ActiveKey:
			a, err := election.DecodeActive(value)
			if err != nil {
				return v, err
			}
			v.active = &a
		case key == election.TermKey:
			if v.term, err = election.DecodeBreadcrumb(value); err != nil {
				return v, err
			}
		case strings.HasPrefix(key, election.ControllerPrefix):
			var c election.Controller
			if err := json.Unmarshal(value, &c); err != nil {
				return v, fmt.Errorf("cannot read %s: %v", key, err)
			}
			v.controllers = append(v.controllers, c)
		case strings.HasPrefix(key, election.AgentPrefix):
			var a election.Agent
			if err := json.Unmarshal(value, &a); err != nil {
				return v, fmt.Errorf("cannot read %s: %v", key, err)
			}
			v.agents = append(v.agents, a)
		case strings.HasPrefix(key, election.HistoryPrefix):
			var h election.History
			if err := json.Unmarshal(value, &h); err != nil {
				return v, fmt.Errorf("cannot read %s: %v", key, err)
			}
			v.histories[h.Term] = h
		}
	}
	slices.SortFunc(v.controllers, func(a, b election.Controller) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(v.agents, func(a, b election.Agent) int { return cmp.Compare(a.Name, b.Name) })
	return v, nil
}

// healthy waits until the cluster is in its normal state: one active, of a term above than, the
// other ready, and the agents and the virtual URL at the active.
func (l *lab) healthy(ctx context.Context, than uint64) (view, error) {
	var v view
	err := wait(ctx, 60*time.Second, "the cluster to be whole", func(ctx context.Context) error {
		var err error
		if v, err = l.view(ctx); err != nil {
			return err
		}
		if !v.active.Serving() {
			return errors.New("nobody is serving")
		}
		if uint64(v.active.Term) <= than {
			return fmt.Errorf("still term %d", v.active.Term)
		}
		if len(v.controllers) != len(l.sides) {
			return fmt.Errorf("%d controllers are present", len(v.controllers))
		}
		for _, c := range v.controllers {
			if c.Name != v.active.Controller && c.State != election.StateReady {
				return fmt.Errorf("%s is %s (%s %s)", c.Name, c.State, c.Health, c.Reason)
			}
		}
		if len(v.agents) != len(l.agents) {
			return fmt.Errorf("%d agents are present", len(v.agents))
		}
		for _, a := range v.agents {
			if a.Term != v.active.Term || a.State != "running" {
				return fmt.Errorf("%s is %s, at %s, term %d", a.Name, a.State, a.Follows, a.Term)
			}
		}
		recent := l.virtual.since(election.BootClock().Add(-300 * time.Millisecond))
		if _, by, ok := servedAgain(recent, uint64(v.active.Term)-1); !ok || by.Name != v.active.Controller {
			return fmt.Errorf("the virtual URL does not lead to %s", v.active.Controller)
		}
		return nil
	})
	return v, err
}

// of returns the side of a controller.
func (l *lab) of(name string) (*side, error) {
	for _, s := range l.sides {
		if s.Name == name {
			return s, nil
		}
	}
	return nil, fmt.Errorf("cannot find controller %q", name)
}
