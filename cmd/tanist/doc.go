// Tanist keeps exactly one copy of a program active on a set of hosts.
//
// One binary has everything: the long-running processes (sidecar, agentwatch, haproxy, vip, run),
// the operator's commands, and, under names that are not listed, the guard, the gate and the keeper,
// which the long-running processes execute. Each command is a file cmd_VERB.go. It parses flags,
// calls one package, and prints; package daemon wires the long-running processes.
//
// # What is guaranteed
//
//   - The exit codes of package exit never change their meaning.
//   - Text from the store is printed without control characters: write access to the store does not
//     give control of the operator's screen.
//   - switchover and failover ask first, unless -y is given. --force overrides a refusal that
//     protects the cluster, and -y does not imply it.
//
// # What is not guaranteed
//
// What a command shows was true when the store answered. Scripts should use -o json: tables may
// change.
//
// # Usage
//
//	tanist sidecar -c orders.yml                     # on each host of a controller
//	tanist list -c orders.yml                        # who is active
//	tanist switchover -c orders.yml --to ctl-b       # move it
//	tanist man | man -l -                            # every command, flag and exit code
package main
