// Package health tells whether a program does its work.
//
// A check asks one question once and answers within a bounded time: [HTTP], [TCP], [Exec], [GRPC], [Postgres], or any
// function. A [Monitor] asks all its checks again and again, and turns the stream of answers into a verdict that does
// not flap: a check is down after Fall failures in a row and up after Rise successes in a row; the program is healthy
// while every check is up.
//
// # What is guaranteed
//
//   - A check that does not answer within its timeout has failed. That holds for a function that ignores its
//     context too: it counts as failed again at every further interval, until it returns; its late answer is dropped.
//   - A check never runs twice at the same time, and no check waits for another one.
//   - With Fall f, interval i and timeout t, a program that stops answering is reported at most i + (f-1)·max(i, t) + t
//     later, and one that refuses at most f·i later, as long as the host gives the monitor the processor.
//   - The processes of an exec check are killed with their whole process group, at the timeout and also when the
//     command itself ended and left something behind.
//
// # What is not guaranteed
//
// A verdict is about the past. A command of an exec check that moves into a session of its own escapes the process group;
// checks are meant to be short questions, and the place where nothing may escape is package process. An open port tells that
// something listens there, not that it is the right program or that it works: [TCP] is the weakest of the checks.
package health
