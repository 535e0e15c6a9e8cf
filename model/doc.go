// Package model holds Promela models of the rules that keep two controllers apart, and the test
// that checks them with Spin.
//
// Each model (lease, adoption, guard, fence, peer) is one file. The test explores the rules
// exhaustively at small bounds and expects no violation. It switches off one rule at a time, with a
// MUT_ macro, and expects a counterexample. With REACH_ macros it proves that the states that
// matter are reached, because a model that cannot move proves nothing.
//
// A model checks the rules, not the code. README.md lists what each model leaves out; the test
// keeps its tables correct.
//
//	go test ./model                    # small bounds: what continuous integration runs
//	TANIST_LONG=1 go test -timeout 60m ./model -run Deep
//	go test ./model -update            # rewrite the tables of README.md
package model
