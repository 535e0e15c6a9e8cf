// Package museum convicts mutants of the production code.
//
// A mutant is the code with one guard or rule switched off, or with a defect put back in that it
// once had. Each is a patch in museum/mutants. It is applied to copies of the files, through the
// overlay of the go command, so that neither the tree nor the product ever contains it. A suite of
// random faults that knows nothing of the mutant must convict it: the simulator, real processes
// under random faults, or the models. A unit test does not count, because it would have been written
// with the defect in mind.
//
// # What is guaranteed
//
// Every mutant applies, at exactly one place, and compiles, and three random ones of those that are
// found surely and soon are convicted each time (the short form, less than a minute). The page
// docs/museum.md is what results.json and the patches say.
//
// # What is not guaranteed
//
// Some mutants are not found yet: the page lists them. results.json is from the last run of the long
// form, which plays every mutant. The seeds are random: another run finds a mutant with another seed,
// and after another time.
//
// # Usage
//
// Everything is in tests.
//
//	go test ./museum                                       # the short form
//	task museum                                            # all mutants; rewrites results.json and docs/museum.md
//	task museum -- -only no-wait                           # some, by a regular expression
//	go test ./museum -run Page -args -update               # rewrites docs/museum.md only
package museum
