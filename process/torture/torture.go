// Package torture is a program that does not want to end, for the tests of package process and the soak tests: a process
// tree that ignores signals, leaves its process group and session, forks daemons, changes its user and never holds still.
package torture

import (
	"bytes"
	_ "embed"
	"os"
	"slices"
	"strconv"
)

//go:embed torture.sh
var script string

// markKey is the environment variable by which the processes of a tree are known.
const markKey = "TORTURE_MARK"

// Command returns a command that makes a tree with n children, each of which forks thrice, and makes the file ready
// when they are there.
func Command(n int, ready string) []string {
	return []string{"/bin/sh", "-c", script, "torture", strconv.Itoa(n), ready}
}

// Env returns the environment entry that a tree must be started with to be found by Living.
func Env(mark string) string { return markKey + "=" + mark }

// Living returns the processes of the tree with that mark. Zombies, which hold nothing but a number, do not count.
func Living(mark string) []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	want := []byte(markKey + "=" + mark)
	var pids []int
	for _, name := range slices.Backward(names) { // the newest first, before they have gone on
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		env, err := os.ReadFile("/proc/" + name + "/environ")
		if err != nil {
			continue
		}
		for kv := range bytes.SplitSeq(env, []byte{0}) {
			if bytes.Equal(kv, want) {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids
}
