// Package guard has everything that runs in the guard process, and nothing else: [Main] starts the
// program, keeps the deadline, and kills the whole tree when the deadline passes or when it is told
// to.
//
// Its code runs although the sidecar is dead, frozen or starved, so it waits for no answer of the
// sidecar and imports nothing of its side. After the program has started, the loop runs on one
// thread, and allocates nothing on its way to the kill.
//
// The guard cannot outlive a frozen host, or end a process in uninterruptible sleep.
//
// Usage: the binary calls Main, through process.GuardMain, when it is executed as a guard, and
// exits with the result.
package guard
