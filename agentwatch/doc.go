// Package agentwatch keeps agents pointed at the active controller of a cluster.
//
// A [Watch] has one view of the cluster and any number of agents. The view is fed by three sources, in this order of trust:
//
//  1. the store's role key, followed through [Source];
//  2. while the store is away, what the sidecars of the known controllers say at /v1/cluster;
//  3. the watch's own probe of the controllers' startup ports. It decides whom to follow only if nothing with a term has
//     ever been seen: then the one known controller that answers, if exactly one does.
//
// What the view makes of them is [Decide], one pure function; docs and golden test have every row of it. Each agent has a
// goroutine of its own that makes its process be what the view wants, and always works on the newest wish.
//
// # What is guaranteed
//
//   - Terms only go up. A record of an older term than one seen is dropped, from whatever source it
//     comes, across restarts too if there is a state file. A probe never overrides a term.
//   - What comes from the store or a sidecar is data: a URL is taken only if it is http or https, has a host, and consists of
//     harmless characters; if controllers are listed, only if it is one of them. It reaches the agent as one
//     argument, one environment variable, or template data, never through a shell.
//   - Old before new: the tree of the old agent is confirmed gone before the new one is started, unless Overlap is on.
//   - A change is never lost: whatever happens in the middle of a restart, the agent ends up at the newest term.
//   - Everything of a start is rendered and validated before anything is touched; each file is replaced atomically.
//   - The agents are stopped for want of a controller only if Retries.Count rounds in a row, Retries.Every apart,
//     found no known controller answering. A store outage alone stops nothing.
//
// # What happens when
//
//   - nobody is active at the start: wait for one; after the retries, give up.
//   - the active is gone, nobody has taken over: the agent keeps running (OnVacancy: stop ends it) and is not restarted if it dies.
//   - a new active serves: restart there, after a random part of Splay.
//   - the active changes again while the agent is being stopped: start at the newest.
//   - the same controller serves under a higher term: restart, since the program behind the URL is a new one.
//   - the same term shows another URL: restart there.
//   - an older term, a stranger's URL or garbage appears: dropped, counted, said once in the log.
//   - the store is away: the agent keeps running; sidecars are asked; a higher term that they agree to is followed.
//   - the store is away and the controller does not answer: keep; after the retries, force-stop and give up.
//   - the store is away at the start: the last known active of the state file is followed if its startup port answers.
//   - the agent ends by itself: started again after a pause that grows while it keeps ending early.
//   - the agent can't be started, or its files can't be rendered: the same; an old agent is not stopped for a broken file.
//   - the agent ignores its stop signal: killed with its tree after StopTimeout.
//   - the end of the agent can't be confirmed: no second one is started; the stop is tried again.
//   - the store refuses or loses the status: nothing else is affected; it is written again with a new lease.
//   - the watch is told to end: agents are stopped, the status is removed, Run returns nil.
//
// # What is not guaranteed
//
// An agent may talk to the old controller until it has been stopped: that the old controller can do no harm is the
// business of the lease and the fence, not of agents. And if the store's term counter itself goes back (a restore
// from a backup, a new store), every record is older than those seen; the watch says so and goes on waiting until the state file is removed
// and it is restarted.
package agentwatch
