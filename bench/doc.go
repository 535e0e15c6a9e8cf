// Package bench measures takeovers on real things: three etcd members in processes of their own,
// sidecars in network and PID namespaces that act as hosts, a link that drops packets silently,
// hosts that die at once. It has only tests. The figures in the documentation come from what they
// print.
//
// The demo controller records when it served, on the clock that all namespaces of a machine share,
// so an overlap is seen whatever the network does. A run that breaks a guarantee fails. A run that
// is slower than its goal fails only in the long form (TANIST_LONG=1), because machines are shared.
//
// Hosts are namespaces of one machine: they share its kernel, its clock and its load. The figures
// are not those of a real network.
//
// # Usage
//
//	go test ./bench                                  # each measurement a few times
//	TANIST_LONG=1 go test -timeout 150m -v ./bench   # the documented figures
package bench
