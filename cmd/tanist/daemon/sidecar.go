package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/health"
	"github.com/tanist/tanist/process"
	"github.com/tanist/tanist/sidecar"
)

// Sidecar assembles one controller's sidecar and runs it until ctx ends.
func Sidecar(ctx context.Context, l *config.Loaded, self Self) (err error) {
	var down teardown
	defer down.unwind(&err)
	// Report every mistake of the operator before anything starts.
	p := &sidecarProcess{
		l: l, cfg: l.Controller, self: self,
		log: self.Log.With().Str("cluster", l.Controller.Cluster).Str("controller", l.Controller.Name).Logger(),
	}
	if err := p.openState(&down); err != nil {
		return err
	}
	if err := p.openStore(ctx, &down); err != nil {
		return err
	}
	cfg, err := p.wire(ctx, &down)
	if err != nil {
		return err
	}
	s := sidecar.New(cfg)
	p.book.showTo(s.ShowVirtualIPs)
	if p.notices, err = p.newNotifier(s.View); err != nil {
		return exit.With(exit.Config, p.l.Problems(err))
	}
	server, err := p.listen(ctx, s, &down)
	if err != nil {
		return err
	}
	around := down.beside(ctx, server.Run,
		process.ReapOrphans, // of checks and hooks; as PID 1 in a container nobody else reaps
		func(ctx context.Context) { runAnnouncer(ctx, p.backend) },
		p.store.run,
		p.fit.loop,
		p.notices.run,
		(&memberWatch{p.backend, s.View, p.log}).run,
		(&pauseWatch{keys: p.backend, view: s.View, log: p.log}).run,
	)
	notifySystemd("READY=1\nSTATUS=taking part in the election of " + p.cfg.Cluster)
	p.log.Info().Str("version", self.Version).Int("pid", os.Getpid()).Msg("started")
	settled := time.AfterFunc(settleTime, process.ShedText)
	defer settled.Stop()
	err = s.Run(ctx)
	notifySystemd("STOPPING=1")
	switch {
	case errors.Is(err, election.ErrNameTaken):
		return nameTaken(around, p.backend, p.cfg)
	case err == nil:
		p.log.Info().Str("reason", context.Cause(ctx).Error()).Msg("ended")
	}
	return err
}

// sidecarProcess collects what the start of a sidecar makes.
type sidecarProcess struct {
	l       *config.Loaded
	cfg     *config.Controller
	self    Self
	log     zerolog.Logger
	backend Store
	peers   *sidecar.Peers // nil without failsafe
	fence   fenceStats
	book    *addressBook // nil without virtual IPs

	host        string // id of this host and its boot
	incarnation string // of this process
	left        *sidecar.StateDir
	store       *storeWatch
	fit         *fitness
	checks      *health.Monitor // nil: none
	output      outputRing
	notices     *notifier // nil without channels
}

// openStore opens the store, and checks that it responds unless an earlier process left a reign:
// that is taken up first, because its lease is running out meanwhile, and may go on without the store.
func (p *sidecarProcess) openStore(ctx context.Context, down *teardown) (err error) {
	where := StoreOf(p.l)
	if p.backend, err = OpenStore(where, p.log); err != nil {
		return err
	}
	down.add(p.backend.Close)
	if p.left.Held() == nil {
		if err := CheckStore(ctx, p.backend, where); err != nil {
			return err
		}
	}
	p.store = newStoreWatch(p.backend, p.cfg.Name, p.log)
	return nil
}

// wire converts the configuration, and what an earlier process of this sidecar left, into what the
// sidecar needs.
func (p *sidecarProcess) wire(ctx context.Context, down *teardown) (cfg sidecar.Config, err error) {
	c := p.cfg
	timing, err := c.Timing()
	if err != nil {
		return cfg, exit.With(exit.Config, err)
	}
	port, err := health.PortOf(c.Run.URL)
	if err != nil {
		return cfg, exit.With(exit.Config, p.l.Problems(fmt.Errorf("run.url: %v", err)))
	}
	urls, err := urlsOf(c.Run)
	if err != nil {
		return cfg, exit.With(exit.Config, p.l.Problems(err))
	}
	state := p.left.Dir()
	driver := makeController(c, state, timing.Validity, p.log, &p.output)
	down.add(driver.Dismiss)
	cfg = sidecar.Config{
		Cluster: c.Cluster, Name: c.Name, URL: c.Run.URL, URLs: urls, API: advertised(c.Listen), Version: p.self.Version, Host: p.host, PID: os.Getpid(),
		Priority: c.Priority, NoFailover: c.NoFailover, Incarnation: p.incarnation, Backend: p.backend, Timing: timing,
		OnStoreLoss: election.StoreLoss(c.OnStoreLoss), Controller: driver,
		Memory: p.left, Resume: p.left.Held(), Predecessor: p.left.Predecessor(), Known: p.left.Known(), Remember: p.left.Remember,
		Port:         func(ctx context.Context) error { return health.WaitPort(ctx, port) },
		PreFlight:    preFlight(c.Run, state, port),
		StartTimeout: c.Run.StartTimeout, StopTimeout: c.Run.StopTimeout, KillTimeout: c.Run.KillTimeout, Drain: c.Run.Drain, YieldWait: c.YieldWait, FailoverInterval: c.Interval,
		RestartLocal: c.Run.Restart.Local, RestartWithin: c.Run.Restart.Within, FenceTimeout: fenceTimeout,
		Hook:  hooks(c.Hooks.Commands(), starter{c.Run.EnvFrom, c.Run.NoNewPrivs}),
		Alive: processAlive(p.host), Log: p.self.Log.Logger, // it adds the names itself
	}
	if err := p.wireAddresses(ctx, &cfg, state, down); err != nil {
		return cfg, err
	}
	if err := p.wireChecks(&cfg, driver, down); err != nil {
		return cfg, err
	}
	return cfg, nil
}

// urlsOf returns the named URLs of a controller.
func urlsOf(r config.Run) (election.URLs, error) {
	main, err := election.ParseURL(r.URL)
	if err != nil {
		return "", fmt.Errorf("run.url: %v", err)
	}
	urls, err := election.NewURLs(main, r.URLs)
	if err != nil {
		return "", fmt.Errorf("run.urls: %v", err)
	}
	return urls, nil
}

// fenceTimeout bounds the fence if the repository sets no bound.
const fenceTimeout = 30 * time.Second

// wireChecks adds the optional parts: fence, checks and peers.
func (p *sidecarProcess) wireChecks(cfg *sidecar.Config, driver *process.Slot, down *teardown) error {
	fence, err := makeFence(p.cfg, &p.fence, driver.Accompany, p.log)
	if err != nil {
		return err
	}
	if fence != nil {
		cfg.Fence, cfg.FenceTimeout = fenceAdapter{fence}, p.cfg.Repository.GiveUp
		down.add(func() error { fence.Shutdown(); return nil })
	}
	plugins := &checkers{}
	down.add(plugins.close)
	checks, err := makeHealth(p.cfg, p.book, plugins, p.log)
	if err != nil {
		return exit.With(exit.Config, p.l.Problems(err))
	}
	if checks != nil {
		cfg.Health, p.checks = checks, checks
	}
	if p.peers, err = makePeers(p.cfg); err != nil {
		return exit.With(exit.Config, err)
	}
	if p.peers != nil {
		cfg.Ask = p.peers.Ask
	}
	return nil
}

// wireAddresses starts the keeper of the virtual IPs, if there are any.
func (p *sidecarProcess) wireAddresses(ctx context.Context, cfg *sidecar.Config, state string, down *teardown) error {
	addresses, err := addressesOf(p.cfg)
	if err != nil {
		return exit.With(exit.Config, p.l.Problems(err))
	}
	if p.book, err = holdAddresses(ctx, addresses, state, p.log); err != nil {
		return err
	}
	down.add(p.book.close)
	p.fit = newFitness(p.cfg)
	cfg.Door, cfg.PreFlight = p.book.door(), p.book.preFlight(p.store.preFlight(p.fit.preFlight(cfg.PreFlight)))
	return nil
}

// openState locks the state directory before anything is changed: only one process may use it.
func (p *sidecarProcess) openState(down *teardown) (err error) {
	c := p.cfg
	if p.host, err = process.HostID(); err != nil {
		return err
	}
	p.incarnation = rand.Text()
	dir := stateDir(c, p.log)
	warn := func(err error) {
		p.log.Warn().Err(err).Str("dir", dir).Msg("cannot write the state directory")
	}
	p.left, err = sidecar.OpenState(dir, c.Cluster, c.Name, p.host, p.incarnation, warn)
	var taken *sidecar.StateTakenError
	switch {
	case errors.As(err, &taken):
		return exit.Errorf(exit.Config, "state_dir: another sidecar (PID %d) runs controller %s of cluster %s with %s: stop that one, or set state_dir",
			taken.PID, c.Name, c.Cluster, dir)
	case err != nil:
		return exit.Errorf(exit.Config, "state_dir: %v", err)
	}
	down.add(p.left.Close)
	return nil
}

// nameTaken returns an error that names the owner of our name.
func nameTaken(ctx context.Context, keys election.Keys, c *config.Controller) error {
	who := ""
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if e, err := keys.Get(ctx, election.ControllerKey(c.Name)); err == nil {
		if other, err := election.DecodeController(e.Value); err == nil {
			who = " " + fmt.Sprintf("(PID %d on %q, version %q)", other.PID, hostName(other.Host), other.Version)
		}
	}
	return exit.Errorf(exit.Config, "name: another live process of cluster %s is %s already%s: give this one another name, or stop that one", c.Cluster, c.Name, who)
}

// notifySystemd notifies systemd, if it started us.
func notifySystemd(state string) {
	_, _ = systemd.SdNotify(false, state) // without systemd there is nobody to notify
}
