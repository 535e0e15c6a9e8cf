// Package daemon assembles the long-running processes from the other packages: the sidecar, the
// agentwatch, `tanist haproxy`, `tanist vip`, the gate, the keeper, and `tanist run`.
//
// It converts a checked configuration into the values that the packages need, and adds no decisions
// of its own. One teardown stack closes everything that a process opens, in reverse order, whether
// the start failed half way or the process was told to end.
//
// It does not read configuration files (package config does) and knows no command line (package
// main does).
//
// # Usage
//
//	l, err := config.Load(config.Options{File: "ctl-a.yml", Want: config.KindController})
//	if err == nil {
//		err = daemon.Check(l) // what `tanist config check` runs
//	}
//	ctx, done := daemon.Signals(context.Background(), "sidecar")
//	defer done()
//	log := daemon.OpenLog(l.Controller.Log, os.Stderr)
//	defer log.Close()
//	err = daemon.Sidecar(ctx, l, daemon.Self{Version: "v1.2.3", Log: log})
//
// Errors carry the exit code of package exit.
package daemon
