// Package kernel has what package process needs of Linux and the standard library does not offer:
// cgroups of version 2, the descendants of a process, facts from /proc, and memory shared with a
// child.
//
// It decides nothing, and does not prove that a process is gone: that is the caller's conclusion.
// [Hunter] and [Cgroup] allocate nothing once they are made, because a guard kills even if the host
// is out of memory.
//
// Usage: open a Cgroup with [OpenCgroup] and kill it as a whole, or make a Hunter with [NewHunter]
// and Strike until it finds no process.
package kernel
