// Package bench measures takeovers on real things: three etcd members in processes of their own, sidecars in network and PID
// namespaces that stand for hosts, a link that drops silently, hosts that die at once. It has tests only; what they print is
// where the numbers in the documentation come from.
//
// The demo controller writes down when it served, on the clock that all hosts of one machine share, so that an overlap is seen
// whatever the network does. A run with a promise broken fails; a run that is slower than the goal fails too, but only in the
// long form (TANIST_LONG=1), since machines are shared.
package bench
