package torture

import (
	_ "embed"
	"strconv"

	"github.com/tanist/tanist/process/internal/kernel"
)

//go:embed torture.sh
var script string

// markKey is the environment variable by which the processes of a tree are known.
const markKey = "TORTURE_MARK"

// forks is far below the number of processes that a host may have (pid_max, 32768 by default): a
// reaper that is frozen lets one zombie pile up for each fork.
const forks = 4000

// Command returns a command that makes a tree with n children, each of which forks thrice, and
// makes the file ready when they are there.
func Command(n int, ready string) []string { return command(n, ready, forks) }

// Still is Command without the process that forks all the time: for a tree that has to be found in
// /proc, where such a process is missed for as long as the host is busy.
func Still(n int, ready string) []string { return command(n, ready, 0) }

func command(n int, ready string, forks int) []string {
	return []string{"/bin/sh", "-c", script, "torture", strconv.Itoa(n), ready, strconv.Itoa(forks)}
}

// Env returns the environment entry that a tree must be started with to be found by Living.
func Env(mark string) string { return markKey + "=" + mark }

// Living returns the processes of the tree with that mark. Zombies, which hold nothing but a
// number, do not count.
func Living(mark string) []int {
	return kernel.Marked(markKey, func(value string) bool { return value == mark })
}
