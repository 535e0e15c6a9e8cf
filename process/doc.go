// Package process keeps a program's process tree, and ends it for certain.
//
// A program that must be active once must also be gone for certain when it may no longer be: with its children, those that
// left its process group and session, those that double-forked, ignore signals or run as another user; and also when the
// sidecar that should see to it is dead, frozen or starved itself.
//
// # The guard
//
// So the sidecar does not start the program. It starts a guard: its own binary, executed once more, in a session
// of its own. The guard starts the program, is the subreaper of all its descendants, and holds a deadline, an instant of
// CLOCK_BOOTTIME, that the sidecar moves on each time the lease is renewed ([Exec.Extend]).
//
//	sidecar ──(deadline, stop)──► guard ──(fork, kill)──► program ─► its children
//	   ▲ ◄──(ack, exit, gone)───────┘
//	   └── subreaper too, and watches the guard: should it die or not answer, the sidecar ends the tree itself
//
// The guard kills the whole tree when the deadline passes or when told to, in one stroke where a cgroup (v2) can be had,
// and in any case by killing its descendants until wait4 says that there is none. That is also how the end is confirmed:
// [Exec.Stop] returns nil only when the kernel has said that no process is left. The deadline is sticky: a renewal that
// comes after it, from a sidecar that was frozen, changes nothing. When the sidecar dies the guard keeps the program until
// the deadline, for a restarted sidecar may [Adopt] it; without a deadline ([election.Never], for agents) it ends it at once.
//
// # A companion
//
// What serves the program, and must go on serving it without the sidecar but not past the deadline, is a [Companion]: the guard starts it
// before the program and ends it after it, or with it. It reads the deadline from memory that it shares with the guard, so that
// it can look before everything it does, also when guard and sidecar are frozen.
//
// # Drivers
//
// [Exec] keeps a program that stays in the foreground, [Script] one that is started and stopped by commands, [Systemd] a
// unit. They have the same methods and pass the same contract test; in each it is a guard that holds the deadline.
//
// A sidecar that is to be restarted without its program noticing needs a Config.StateDir, calls Detach before it ends (or
// is killed), and Adopt when it is back, before the deadline. The service manager must not take the guard along: under
// systemd that means KillMode=process, and Delegate=yes for cgroups without root.
//
// A guard is small, for its binary's pages are shared with the sidecar and given back after the start: 7 MiB resident, of
// which 2.5 MiB are its own.
//
// # What is guaranteed
//
//   - A tree is gone soon after its deadline, whatever happens to the sidecar, and whatever happens to the guard as long as the sidecar
//     lives. If both are killed in the same instant, the main process dies with the guard; what else is left is killed
//     by [Adopt] when a sidecar comes back, and best by the service manager (KillMode, a container's end).
//   - The exit of the program is an event, not the result of a poll.
//   - The program gets stdin from /dev/null, the stdout and stderr that [Output] says, and no other file of ours.
//
// # What is not guaranteed
//
// "Soon" is a scheduling delay: with SCHED_RR, which takes root or CAP_SYS_NICE, a few milliseconds, otherwise up to
// a second on a host that is badly overloaded. A frozen host freezes the guard as well. A process in uninterruptible sleep can't
// be killed; then a stop is never confirmed, and says so. A process that was handed over to another supervisor (docker run,
// systemd-run, at) is not a descendant: use the driver that speaks to that supervisor.
//
// A tree without a cgroup whose guard is killed after having been adopted can't be confirmed gone, since its
// processes are nobody's children that we could wait for. They are killed by the mark in their environment (TANIST_TREE), and Stop
// returns an error.
package process
