// Package host finds plugins, starts them, watches over them and ends them, and is the host's side of
// what they offer.
//
// # What is guaranteed
//
// A plugin is found by its name in the plugin directories and nowhere else. Its file, and the
// directory, belong to root or to this user, and nobody else may write them; with a checksum, the
// very file that was checked is executed. It gets only the environment that it is given.
//
// A call returns soon after its context ends, whatever the plugin does. A plugin that crashes,
// hangs, answers late or answers nonsense makes the outcome unknown: never a success, never a
// refusal. Every answer is checked: its form, that it has what was asked for and nothing else, and
// that revisions and versions never run backward.
//
// A plugin that ended is started again, at once the first time, and the leases that it granted are
// continued. One that does not answer a ping is killed and started again. When it fails again and
// again, the pauses grow, and calls fail at once with an error that reports why and for how long.
//
// A plugin ends with its host. The thread that started it is this process's for as long as the
// plugin runs, so that the kernel kills the plugin (PR_SET_PDEATHSIG) exactly when this process is
// gone; and the plugin reads a pipe that only this process holds open.
//
// # What is not guaranteed
//
// A plugin runs with the rights of its host. It is code that the operator trusts: the checks are
// against faults, not against malice. Processes that a plugin starts are its own.
//
// # Usage
//
//	p, err := host.Open(host.Spec{Name: "nats", Dirs: host.Dirs(), Log: log})
//	store, err := p.Store(ctx, host.StoreOptions{Cluster: "orders", Settings: settings})
//	defer store.Close()
package host
