// Package health decides whether a program does its work.
//
// A check makes one request and responds within a bounded time: [HTTP], [TCP], [Exec], [GRPC],
// [Postgres], or any function. A [Monitor] runs all its checks periodically and turns the results
// into a verdict that does not flap: a check is down after Fall failures in a row and up after Rise
// successes in a row. The program is healthy while every check is up.
//
// # What is guaranteed
//
//   - A check that does not respond within its timeout has failed. That holds even for a function
//     that ignores its context: it counts as failed again at every further interval until it
//     returns, and its late result is dropped.
//   - A check never runs twice at the same time, and no check waits for another one.
//   - With Fall f, interval i and timeout t, a program that stops responding is reported after at
//     most i + (f-1)·max(i, t) + t, and one that refuses connections after at most f·i, provided
//     that the host gives the monitor the processor.
//   - The whole process group of an exec check is killed at the timeout, and also when the command
//     itself has ended and left processes behind.
//
// # What is not guaranteed
//
// A verdict is about the past. A command of an exec check that starts a session of its own escapes
// the process group: checks should be short, and package process is for what must not escape. An
// open port shows that something listens there, not that it is the right program or that it works:
// [TCP] is the weakest check.
//
// # Usage
//
//	open, err := health.TCP("127.0.0.1:8080", nil)
//	m := health.NewMonitor(health.Config{
//		Interval: time.Second, Timeout: time.Second, Rise: 1, Fall: 3,
//		Checks: []health.Check{{Name: "port", Run: open}},
//	}, log)
//	err = m.Wait(starting, func(detail string) { … }) // until the program is up for the first time
//	m.Run(ctx, func(healthy bool, detail string, since time.Time) { … }) // until ctx ends
package health
