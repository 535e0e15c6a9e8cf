package process

// Companion is a process that serves the program and must not outlive it: the guard starts it
// before the program, as its own user, and kills it with the tree. It is not asked to end, so that
// it still serves a program that is being stopped; when nothing of the program is left it is
// killed. It lives on without the sidecar, as the program does. If it ends by itself the tree is
// killed, and [Exec.Exit] says so: a program without it is a failed one.
//
// It is the same binary as the guard, and calls [Attend] first.
type Companion struct {
	Args []string // of the binary: a subcommand that no user is shown
	Env  []string // its whole environment
	// what it is told. Secrets may be in it: nobody but the guard and the companion sees it.
	Input []byte
}

// Accompany sets the companion of the next Start; nil means that there is none. One that is running
// is not touched.
func (d *driver) Accompany(c *Companion) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.companion = c
}
