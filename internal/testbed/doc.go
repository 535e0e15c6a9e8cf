// Package testbed contains what tests of real processes share: binaries, addresses, directories,
// processes whose logs are printed when the test fails, and a control for claims about time.
//
// It is for tests only, which the layout test enforces. Every address is free a moment before its
// use and out of reach of outgoing connections. Every process has ended when its test is over. With
// TANIST_KEEP=DIR the tests' directories are created in DIR and stay.
//
// # Usage
//
//	tanist := testbed.Binary(t, "tanist")
//	dir := testbed.Dir(t)
//	p := testbed.Start(t, exec.Command(tanist, "sidecar", "-c", filepath.Join(dir, "ctl-a.yml")))
//	p.Await(`"message":"started"`, 10*time.Second)
//	p.Signal(syscall.SIGTERM)
//	err := p.End(10 * time.Second)
package testbed
