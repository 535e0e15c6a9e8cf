// Package agentwatch keeps agents pointed at the active controller of a cluster.
//
// A [Watch] has one picture of the cluster and any number of agents. The picture has three sources,
// in this order of trust:
//
//  1. the store's role key, followed through [Source];
//  2. while the store is away, the responses of the known controllers' sidecars at /v1/cluster, if
//     they are signed with the cluster's secret for this very request;
//  3. the watch's own probe of the controllers' startup ports. It decides only if nothing with a
//     term has ever been seen: then the agents follow the known controller that responds, if exactly
//     one does.
//
// [Decide], one pure function, turns the picture into a decision; the docs and a golden test list
// every row of it. Each agent has its own goroutine, which makes its process match the decision and
// always works on the newest one.
//
// # What is guaranteed
//
//   - Terms only grow. A record with an older term than one seen is dropped, whatever its source,
//     and across restarts too if there is a state file, unless the store keeps reporting it
//     ([election.LowerFor]). A probe never overrides a term.
//   - Data from the store or a sidecar must pass [election.Filter]. A URL reaches the agent as one
//     argument, one environment variable, or template data, never through a shell.
//   - Old before new: the tree of the old agent is confirmed gone before the new one is started,
//     unless Overlap is set.
//   - No change is lost: whatever happens in the middle of a restart, the agent ends up at the
//     newest term.
//   - All files and arguments of a start are rendered and validated before anything is changed;
//     each file is replaced atomically.
//   - The agents are stopped for lack of a controller only if Retries.Count rounds in a row,
//     Retries.Every apart, found no known controller that responds. A store outage alone stops
//     nothing.
//
// # What happens when
//
//   - Nobody is active at the start: wait for a controller; after the retries, give up.
//   - The store names a controller that is being started: wait, however long it takes; no retry
//     counts.
//   - The active is gone and nobody has taken over: the agent keeps running (OnVacancy: stop ends
//     it) and is not restarted if it dies.
//   - A new active serves: restart there, after a random part of Splay.
//   - The active changes again while the agent is being stopped: start at the newest.
//   - The same controller serves under a higher term: restart, since the program behind the URL is
//     a new one.
//   - The same term has another URL: restart there.
//   - An older term, a foreign URL or garbage appears: dropped, counted, logged once.
//   - The store is away: the agent keeps running; sidecars are asked; a higher term is followed.
//   - The store is away and the controller does not respond: keep the agent; after the retries,
//     force-stop it and give up.
//   - The store is away at the start: follow the last known active of the state file if its startup
//     port is open.
//   - The agent ends by itself: start it again after a pause that grows while it keeps ending
//     early.
//   - The agent can't be started, or its files can't be rendered: the same. A broken file does not
//     stop the old agent.
//   - The agent ignores its stop signal: kill it with its tree after StopTimeout.
//   - The end of the agent can't be confirmed: start no second one; retry the stop.
//   - The store refuses or loses the status: nothing else is affected; the status is rewritten with
//     a new lease.
//   - The watch is told to end: stop the agents, remove the status, return nil from Run.
//
// # What is not guaranteed
//
// An agent may talk to the old controller until it has been stopped: the lease and the fence
// prevent harm from the old controller, agents do not. If the store's term counter goes back (a
// restore from a backup, a new store), every record is older than those seen, and the agents wait
// for [election.LowerFor] before they follow it.
//
// # Usage
//
//	cfg := agentwatch.Defaults()
//	cfg.Cluster, cfg.Source = "orders", store // anything that follows the role key
//	agent := agentwatch.AgentDefaults()
//	agent.Name, agent.New = "agt-1", newProcess
//	agent.Command = []string{"/opt/orders/bin/agent", "--server", "{{ .Active.URL }}"}
//	cfg.Agents = append(cfg.Agents, agent)
//	watch, err := agentwatch.New(cfg) // everything that is wrong with cfg
//	...
//	err = watch.Run(ctx) // until ctx ends (nil), or nobody can be reached (*UnreachableError)
package agentwatch
