// Package torture is a program that does not want to end, for the tests of package process and the
// soak tests: a process tree that ignores signals, leaves its process group and session, forks
// daemons, changes its user and never holds still.
//
// It is bounded all the same: a tree that nobody ends stops forking when the directory of its ready
// file is removed, or after a few thousand forks, and is gone minutes after its start.
//
// It does not end a tree: that is what the tests are about.
//
// Usage: start the result of [Command], wait for its ready file, and end the tree. [Still] is the
// same without the process that forks all the time.
package torture
