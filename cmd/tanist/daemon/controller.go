package daemon

import (
	"os"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/process"
	"github.com/tanist/tanist/sidecar"
)

// A sidecar looks for these interfaces at run time, so only this declaration detects a missing one.
var _ interface {
	sidecar.Preparer
	sidecar.Adopter
	sidecar.Settler
} = (*process.Slot)(nil)

// makeController returns the slot of the configured controller, the one place where it may run. No
// deadline given to the controller lies further ahead than validity.
func makeController(c *config.Controller, state string, validity time.Duration, log zerolog.Logger, ring *outputRing) *process.Slot {
	r := c.Run
	watchdog := map[string]process.Watchdog{"off": process.WatchdogOff, "auto": process.WatchdogAuto, "required": process.WatchdogRequired}[c.Watchdog]
	cfg := asController(r, r.Command)
	cfg.StopSignal, cfg.Output = stopSignal(r.StopSignal), outputOf(r.Output, c.Cluster+"-"+c.Name, log, ring)
	cfg.StateDir, cfg.Lead, cfg.Watchdog, cfg.Log = state, validity, watchdog, log
	cfg.Identity = process.Identity{Cluster: c.Cluster, Controller: c.Name}
	switch r.Driver {
	case "script":
		return process.NewSlot(migrating(r.Migrate, cfg, process.NewScript(process.ScriptConfig{
			Config: cfg, StopCommand: r.Stop, StatusCommand: r.Status, KillCommand: r.Kill, PIDFile: r.PIDFile, StartWithin: r.StartTimeout,
		})))
	case "systemd":
		unit := process.SystemdConfig{
			Unit: r.Unit, EnvFile: r.EnvFile, StartWithin: r.StartTimeout, StateDir: state, Identity: cfg.Identity, Lead: validity,
			Watchdog: watchdog, Log: log,
		}
		if unit.EnvFile == "" {
			unit.EnvFile = filepath.Join(state, "environment")
		}
		return process.NewSlot(process.NewSystemd(unit))
	}
	return process.NewSlot(migrating(r.Migrate, cfg, process.New(cfg)))
}

// asController describes a command that runs as the controller does: in its directory, as its user,
// with its environment and privileges.
func asController(r config.Run, command []string) process.Config {
	return process.Config{
		Command: command, Inherit: r.EnvFrom.Inherited(os.Environ()), Env: environment(r.Env), NewPrivs: !r.NoNewPrivs, OOMScore: r.OOMScoreAdj,
		Dir: r.Dir, User: r.User,
	}
}

// migrating returns a driver that runs the migration before the program that cfg describes. Without
// one it only ends what an earlier process, with another configuration, has left of its own.
func migrating(m config.Migrate, cfg process.Config, d process.Driver) process.Driver {
	within := m.Timeout
	cfg.StateDir = filepath.Join(cfg.StateDir, "migration")
	cfg.Identity.Controller += "/migration" // a controller's name has no slash
	if len(m.Command) == 0 {
		if _, err := os.Stat(cfg.StateDir); err != nil {
			return d
		}
		within = 0
	} else {
		cfg.Command = m.Command
	}
	cfg.Watchdog = process.WatchdogOff
	return process.NewMigrating(d, cfg, within)
}
