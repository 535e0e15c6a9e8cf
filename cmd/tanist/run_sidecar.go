package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/api"
	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/haproxy"
	"github.com/tanist/tanist/health"
	"github.com/tanist/tanist/postgres"
	"github.com/tanist/tanist/process"
	"github.com/tanist/tanist/sidecar"
)

// daemonFlags are those of the commands that run for long.
type daemonFlags struct {
	file string
	set  []string
}

func (d *daemonFlags) flags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&d.file, "config", "c", "", "configuration file (required)")
	cmd.Flags().StringArrayVar(&d.set, "set", nil, "override a value of the file: lease.ttl=3s (repeatable)")
}

func (d *daemonFlags) load(kind config.Kind) (*config.Loaded, error) {
	if d.file == "" {
		return nil, exit(exitUsage, "give the configuration file with -c FILE; `tanist config init --kind %s` writes one to begin with", kind)
	}
	l, err := config.Load(config.Options{File: d.file, Want: kind, Set: d.set})
	if err != nil {
		return nil, loadError(err)
	}
	if err := checkRooms(l); err != nil {
		return nil, loadError(l.Problems(err))
	}
	return l, nil
}

func sidecarCommand() *cobra.Command {
	var flags daemonFlags
	cmd := &cobra.Command{
		Use: "sidecar -c FILE", Short: "Run beside a controller: elect, start, check, force-stop it", Args: noArgs,
		Long: "Run beside a controller.\n\nSIGTERM ends the reign as a planned move: the controller is stopped and another takes over. SIGUSR2 detaches: the\n" +
			"controller runs on for as long as its lease, and the next `tanist sidecar` takes it up again without an outage.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := flags.load(config.KindController)
			if err != nil {
				return err
			}
			ctx, done := signals(cmd.Context(), "sidecar")
			defer done()
			return runSidecar(ctx, l, newLog(l.Controller.Log, cmd.ErrOrStderr()))
		},
	}
	flags.flags(cmd)
	return cmd
}

// runSidecar wires the rooms for one controller and runs until ctx ends.
func runSidecar(ctx context.Context, l *config.Loaded, log zerolog.Logger) (err error) {
	c := l.Controller
	plain := log // the sidecar adds its own
	log = log.With().Str("cluster", c.Cluster).Str("controller", c.Name).Logger()
	timing, err := c.Timing()
	if err != nil {
		return loadError(err)
	}
	where := storeOf(l)
	backend, err := openStore(where, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, backend.Close()) }()

	// Everything that is a mistake of the operator's is told before anything is started.
	server := &served{cfg: c}
	defer server.close()
	if err := checkStore(ctx, backend, where); err != nil {
		return err
	}
	if w, ok := backend.(interface{ Warning(context.Context) string }); ok {
		limited, cancel := context.WithTimeout(ctx, storeTimeout)
		if warning := w.Warning(limited); warning != "" {
			log.Warn().Msg(warning)
		}
		cancel()
	}
	var driver *controller
	fence, err := makeFence(c, &server.fence, func(beside *process.Companion) { driver.accompany(beside) }, log)
	if err != nil {
		return err
	}
	checks, err := makeHealth(c, log)
	if err != nil {
		return loadError(l.Problems(err))
	}
	port, err := health.PortOf(c.Run.URL)
	if err != nil {
		return loadError(l.Problems(fmt.Errorf("run.url: %v", err)))
	}
	host, err := hostID()
	if err != nil {
		return err
	}
	state := filepath.Join(c.StateDir, c.Cluster+"-"+c.Name)
	memo := memory{path: filepath.Join(state, "reign.json"), host: host}
	held, err := memo.load()
	if err != nil {
		log.Warn().Err(err).Msg("starting anew")
	}
	incarnation := rand.Text()
	if held != nil {
		incarnation = held.Incarnation
	}
	driver = makeController(c, state, log)

	cfg := sidecar.Config{
		Cluster: c.Cluster, Name: c.Name, URL: c.Run.URL, API: advertised(c.Listen), Version: versionText(), Host: host, PID: os.Getpid(),
		Priority: c.Priority, NoFailover: c.NoFailover, Incarnation: incarnation, Backend: backend, Timing: timing,
		OnStoreLoss: election.StoreLoss(c.OnStoreLoss), Controller: driver, Memory: memo, Resume: held,
		Port:         func(ctx context.Context) error { return health.WaitPort(ctx, port) },
		PreFlight:    preFlight(c.Run.Command, c.Run.Dir, c.Run.Env["PATH"], port),
		StartTimeout: c.Run.StartTimeout, StopTimeout: c.Run.StopTimeout, Drain: c.Run.Drain, YieldWait: c.YieldWait, FailoverInterval: c.Interval,
		RestartLocal: c.Run.Restart.Local, RestartWithin: c.Run.Restart.Within, FenceTimeout: 30 * time.Second,
		Hook:  hooks(c.Cluster, c.Hooks.Commands()),
		Alive: processAlive(host), Log: plain,
	}
	if checks != nil {
		cfg.Health = checks
	}
	if fence != nil {
		cfg.Fence, cfg.FenceTimeout = fenceAdapter{fence}, c.Repository.GiveUp
		defer fence.Shutdown()
	}
	peers, err := makePeers(c)
	if err != nil {
		return loadError(err)
	}
	if peers != nil {
		cfg.Vouch = peers.Vouch
	}
	s := sidecar.New(cfg)
	if err := server.listen(s, backend, peers, log); err != nil {
		return err
	}

	// What serves the sidecar outlives it: the last thing it does is to be asked about.
	around, stop := context.WithCancel(context.WithoutCancel(ctx))
	var others sync.WaitGroup
	others.Go(func() { server.run(around) })
	others.Go(func() { process.ReapOrphans(around) }) // of checks and hooks; as PID 1 in a container there is nobody else
	others.Go(func() { runAnnouncer(around, backend) })
	notify("READY=1\nSTATUS=taking part in the election of " + c.Cluster)
	log.Info().Str("version", versionText()).Int("pid", os.Getpid()).Msg("started")
	err = s.Run(ctx)
	if errors.Is(err, election.ErrNameTaken) {
		err = nameTaken(around, backend, c)
	}
	notify("STOPPING=1")
	stop()
	others.Wait()
	if err == nil {
		log.Info().Str("reason", context.Cause(ctx).Error()).Msg("ended")
	}
	return err
}

// nameTaken tells who has our name.
func nameTaken(ctx context.Context, keys election.Keys, c *config.Controller) error {
	who := ""
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if e, err := keys.Get(ctx, "controllers/"+c.Name); err == nil {
		if other, err := election.DecodeController(e.Value); err == nil {
			who = " " + clean(fmt.Sprintf("(PID %d on %s, version %s)", other.PID, hostOf(other.Host), other.Version))
		}
	}
	return exit(exitConfig, "name: another live process of cluster %s is %s already%s: give this one another name, or end that one", c.Cluster, c.Name, who)
}

// notify tells systemd, if it started us.
func notify(state string) {
	_, _ = daemon.SdNotify(false, state) // without systemd there is nobody to tell
}

// fenceAdapter fits the repository's fence to the sidecar's words.
type fenceAdapter struct{ *postgres.Fence }

func (f fenceAdapter) Assert(ctx context.Context, term election.Term) error {
	err := f.Fence.Assert(ctx, term)
	if errors.Is(err, postgres.ErrTerm) {
		return superseded{err}
	}
	return err
}

type superseded struct{ error }

func (superseded) Superseded() bool { return true }
func (s superseded) Unwrap() error  { return s.error }

// makeFence makes the fence that a configuration describes, or nil. accompany is told the gate of each term, before the fence
// is open, where there is to be one.
func makeFence(c *config.Controller, stats *fenceStats, accompany func(*process.Companion), log zerolog.Logger) (*postgres.Fence, error) {
	r := c.Repository
	if r == nil {
		return nil, nil
	}
	dsn, err := secretFile(r.DSNFile)
	if err != nil {
		return nil, exit(exitConfig, "repository.dsn_file: %v", err)
	}
	dsn = strings.TrimSpace(dsn)
	secret := postgres.Secret{Env: r.Secret.Env, Passfile: r.Secret.Passfile}
	if f := r.Secret.File; f != nil {
		secret.File = &postgres.SecretFile{Template: f.Template, Path: f.Path}
	}
	if c.Run.User != "" {
		uid, gid, err := ids(c.Run.User)
		if err != nil {
			return nil, exit(exitConfig, "run.user: %v", err)
		}
		secret.Owner = &postgres.Owner{UID: uid, GID: gid}
	}
	if g := r.Secret.Gate; g != nil {
		if secret.Gate, err = makeGate(c, dsn, secret.Owner, accompany); err != nil {
			return nil, exit(exitConfig, "repository.secret.gate: %v", err)
		}
	}
	fence, err := postgres.NewFence(postgres.Config{
		Cluster: c.Cluster, Controller: c.Name, Role: r.Role, DSN: dsn, Secret: secret, Log: log,
		Observe: func(p postgres.Report) {
			stats.add(p)
			level := zerolog.InfoLevel
			if p.Err != nil {
				level = zerolog.WarnLevel
			}
			log.WithLevel(level).Err(p.Err).Uint64("term", uint64(p.Term)).Dur("begin_ms", p.Begin).Dur("drain_ms", p.Drain).Dur("open_ms", p.Open).
				Int("sessions_ended", p.Ended).Msg("fenced the repository")
		},
	})
	if err != nil {
		return nil, exit(exitConfig, "repository: %v", err)
	}
	return fence, nil
}

func ids(name string) (uid, gid int, err error) {
	u, err := user.Lookup(name)
	if err != nil {
		if u, err = user.LookupId(name); err != nil {
			return 0, 0, err
		}
	}
	if uid, err = strconv.Atoi(u.Uid); err != nil {
		return 0, 0, err
	}
	gid, err = strconv.Atoi(u.Gid)
	return uid, gid, err
}

func makeHealth(c *config.Controller, log zerolog.Logger) (*health.Monitor, error) {
	h := health.Config{Interval: c.Health.Interval, Timeout: c.Health.Timeout, Rise: c.Health.Rise, Fall: c.Health.Fall}
	for i, k := range c.Health.Checks {
		check := health.Check{Name: k.Name}
		var err error
		switch {
		case k.HTTP != "":
			var expect []int
			for _, e := range k.Expect {
				n, err := strconv.Atoi(e)
				if err != nil {
					return nil, fmt.Errorf("health.checks[%d].expect: %q is not a status code", i, e)
				}
				expect = append(expect, n)
			}
			check.Run, err = health.HTTP(k.HTTP, health.HTTPOptions{Expect: expect})
		case k.TCP != "":
			check.Run, err = health.TCP(k.TCP)
		case len(k.Exec) > 0:
			check.Run, err = health.Exec(k.Exec, health.ExecOptions{})
		case k.GRPC != "":
			check.Run, err = health.GRPC(k.GRPC, k.Service, nil)
		case k.Postgres != "":
			check, err = health.Postgres(k.Name, k.Postgres)
		}
		if err != nil {
			return nil, fmt.Errorf("health.checks[%d]: %s", i, postgres.Unquoted(err))
		}
		h.Checks = append(h.Checks, check)
	}
	if len(h.Checks) == 0 {
		return nil, nil
	}
	if err := h.Validate(); err != nil {
		return nil, err
	}
	return health.NewMonitor(h, log), nil
}

func makePeers(c *config.Controller) (*sidecar.Peers, error) {
	if c.Failsafe.SecretFile == "" {
		return nil, nil
	}
	secret, err := secretFile(c.Failsafe.SecretFile)
	if err != nil {
		return nil, err
	}
	return &sidecar.Peers{
		Cluster: c.Cluster, Name: c.Name, Secret: []byte(strings.TrimSpace(secret)), Timeout: c.Failsafe.Timeout,
		Client: &http.Client{Transport: &http.Transport{Proxy: nil, MaxIdleConnsPerHost: 1, IdleConnTimeout: 10 * time.Second}},
	}, nil
}

// stopSignal returns the signal that a checked configuration names.
func stopSignal(name string) syscall.Signal {
	return unix.SignalNum("SIG" + strings.TrimPrefix(name, "SIG"))
}

// outputOf turns the key output into what a driver needs.
func outputOf(value, name string, log zerolog.Logger) process.Output {
	if file, ok := strings.CutPrefix(value, "file:"); ok {
		return process.Output{File: file}
	}
	switch value {
	case "journal":
		return process.Output{Journal: name}
	case "log":
		return process.Output{Line: func(line []byte) { log.Info().Str("output", string(line)).Msg("") }}
	}
	return process.Output{}
}

func environment(env map[string]string) []string {
	all := os.Environ()
	for _, key := range slices.Sorted(maps.Keys(env)) {
		all = append(all, key+"="+env[key])
	}
	return all
}

// advertised returns the base URL at which others reach the REST interface, or "" if they can't.
func advertised(l config.Listen) string {
	if l.Advertise != "" {
		return strings.TrimSuffix(l.Advertise, "/")
	}
	host, port, err := net.SplitHostPort(l.HTTP)
	if err != nil || port == "0" {
		return ""
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		return ""
	}
	return "http://" + net.JoinHostPort(host, port)
}

// served is what a sidecar shows.
type served struct {
	cfg    *config.Controller
	server *api.Server
	fence  fenceStats
}

func (v *served) close() {
	if v.server != nil {
		v.server.Close()
	}
}

func (v *served) run(ctx context.Context) { v.server.Run(ctx) }

func (v *served) listen(s *sidecar.Sidecar, backend election.Backend, peers *sidecar.Peers, log zerolog.Logger) error {
	status := func(yes func(sidecar.View) bool) api.Answer {
		return func() (bool, any) {
			view := s.View()
			return yes(view), statusDocument(v.cfg.Cluster, view)
		}
	}
	active := status(func(view sidecar.View) bool { return view.LeaseLeft > 0 && view.Status.State == election.StateServing })
	passive := status(func(view sidecar.View) bool { return view.Term == 0 && view.Status.State == election.StateReady })
	ready := status(func(view sidecar.View) bool {
		return view.Status.State == election.StateReady || (view.LeaseLeft > 0 && view.Status.State == election.StateServing)
	})
	alive := status(func(view sidecar.View) bool {
		return election.BootClock().Sub(view.Ticked) < aliveWithin
	})
	cfg := api.Config{
		Answers: map[string]api.Answer{
			"/": active, "/active": active, "/primary": active, "/leader": active, "/read-write": active,
			"/passive": passive, "/live": alive, "/ready": ready,
		},
		Documents: map[string]api.Document{
			"/v1/status": func(context.Context) (any, error) { return statusDocument(v.cfg.Cluster, s.View()), nil },
			"/v1/cluster": func(ctx context.Context) (any, error) {
				return clusterDocument(ctx, v.cfg.Cluster, s.View(), backend), nil
			},
			"/v1/history": func(ctx context.Context) (any, error) { return readHistory(ctx, backend) },
		},
		Handlers: map[string]http.Handler{},
		Metrics:  []prometheus.Collector{sidecarMetrics(v.cfg, s, &v.fence)},
		AgentCheck: func() string {
			view := s.View()
			state := view.Status.State
			if state == election.StateServing && view.LeaseLeft <= 0 {
				state = election.StateFailed
			}
			return haproxy.AgentCheck(state, view.Status.Reason)
		},
		Log: log,
	}
	if peers != nil {
		cfg.Handlers["POST "+sidecar.AskPath] = peers.Handler(s.StandBack)
	}
	v.server = api.New(cfg)
	if v.cfg.Listen.HTTP != "" {
		if _, err := v.server.Listen(v.cfg.Listen.HTTP); err != nil {
			return exit(exitFailure, "listen.http: %v: choose another address, or end the program that has it", err)
		}
	}
	if v.cfg.Listen.AgentCheck != "" {
		if _, err := v.server.ListenAgentCheck(v.cfg.Listen.AgentCheck); err != nil {
			return exit(exitFailure, "listen.agent_check: %v: choose another address, or end the program that has it", err)
		}
	}
	if v.cfg.Listen.Admin != "" {
		if err := v.server.ListenUnix(strings.TrimPrefix(v.cfg.Listen.Admin, "unix:")); err != nil {
			return exit(exitFailure, "listen.admin: %v", err)
		}
	}
	return nil
}

// aliveWithin is how long the sidecar's loop may take to come round before it counts as stuck.
const aliveWithin = 15 * time.Second
