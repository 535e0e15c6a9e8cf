// Package process keeps a program's process tree, and ends it for certain.
//
// A program that must be active once must also be gone for certain when it may no longer be active:
// with its children, including those that left its process group and session, double-forked, ignore
// signals or run as another user; and even when the sidecar that should end it is dead, frozen or
// starved.
//
// # The guard
//
// The sidecar does not start the program. It starts a guard: its own binary, executed once more, in
// a session of its own. The guard starts the program, is the subreaper of all its descendants, and
// holds a deadline, an instant of CLOCK_BOOTTIME. The sidecar moves the deadline each time the
// lease is renewed ([Exec.Extend]).
//
//	sidecar ──(deadline, stop)──► guard ──(fork, kill)──► program ─► its children
//	   ▲ ◄──(ack, exit, gone)───────┘
//	   └── subreaper too; watches the guard, and ends the tree itself if the guard fails
//
// The guard kills the whole tree when the deadline passes or when told to: in one stroke where it
// has a cgroup (v2), and in any case by killing its descendants until wait4 reports that there are
// none. That also confirms the end: [Exec.Stop] returns nil only after the kernel has reported that
// no process is left. The deadline is sticky: a renewal that comes after it, from a sidecar that
// was frozen, changes nothing. When the sidecar dies, the guard keeps the program until the
// deadline, because a restarted sidecar may [Adopt] it; without a deadline ([election.Never], for
// agents) it ends the program at once.
//
// A sidecar that is to be restarted without its program noticing needs a Config.StateDir, calls
// Detach before it ends (or is killed), and Adopt when it is back, before the deadline. The service
// manager must leave the guard alone: under systemd that means KillMode=process, and Delegate=yes
// for cgroups without root.
//
// A guard is small, because it shares its binary's pages with the sidecar and gives them back after
// the start: 7 MiB resident, 2.5 MiB of them its own.
//
// # Which process runs what
//
// The files of this package run in the sidecar. Everything that the guard process runs is in
// internal/guard, what a companion calls in internal/attend, what they tell one another in
// internal/wire, and what they need from the kernel in internal/kernel.
//
// # Drivers
//
// [Exec] keeps a program that stays in the foreground, [Script] one that is started and stopped by
// commands, [Systemd] a unit. They have the same methods and pass the same contract test; in each
// of them a guard holds the deadline.
//
// # A companion
//
// A [Companion] serves the program. It must continue without the sidecar, but not past the
// deadline. The guard starts it before the program and ends it after or with the program. It reads
// the deadline from memory that it shares with the guard, so it can check before everything that it
// does, even when guard and sidecar are frozen.
//
// # Guarantees
//
//   - A tree is gone soon after its deadline, whatever happens to the sidecar, and whatever happens
//     to the guard as long as the sidecar lives. If both are killed at the same instant, the main
//     process dies with the guard; the rest is killed when a sidecar comes back ([Exec.Settle]), or
//     by the service manager (KillMode, a container's end).
//   - A stop returns nil only if it is shown that nothing is left. Finding nothing does not show
//     that: see [Verdict]. If it cannot be shown, the stop waits until the last deadline has passed
//     and returns [election.ErrUnproven].
//   - The start is on record before it begins, and a guard holds a lock from before its first
//     instruction to after its last.
//   - The exit of the program is an event, not the result of a poll.
//   - The program gets stdin from /dev/null, the stdout and stderr that [Output] selects, and no
//     other file of ours.
//
// # Not guaranteed
//
//   - How soon "soon" is: it is a scheduling delay. With SCHED_RR, which takes root or
//     CAP_SYS_NICE, it is a few milliseconds, otherwise up to a second on a badly overloaded host.
//     A frozen host freezes the guard as well.
//   - The end of a process in uninterruptible sleep: it cannot be killed. The stop is never
//     confirmed then, and reports that.
//   - The end of a process that was handed over to another supervisor (docker run, systemd-run,
//     at): it is not a descendant. Use the driver for that supervisor.
//   - A proof for a tree without a cgroup whose guard is killed after it was adopted: its processes
//     are not our children, so we cannot wait for them. Processes with the mark of the tree in
//     their environment (TANIST_TREE) are killed, and Stop returns [election.ErrUnproven] after the
//     deadline. A process of such a tree that forks and exits all the time can be missed for as
//     long as the host is busy.
//
// # Usage
//
//	slot := process.NewSlot(process.New(process.Config{
//		Command: command, StateDir: dir, Identity: who, Lead: validity, Log: log,
//	}))
//	if err := slot.Adopt(ctx, deadline); errors.Is(err, process.ErrNothingToAdopt) {
//		err = slot.Start(ctx, env, deadline)
//	}
//	slot.Extend(deadline) // with each renewal
//	<-slot.Exited()
//	err := slot.Stop(ctx, grace) // nil: gone for certain
package process
