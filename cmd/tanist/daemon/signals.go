package daemon

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
)

// Signals is a process's handling of signals. TERM, INT and QUIT request a planned end; a second
// one ends the process at once, and the guard then ends the controller. Signals that were ignored
// when the process started, as nohup and shells do for background processes, stay ignored.
type Signals struct {
	Who string // for the reason of the end
	// Detach is called at SIGUSR2. It reports whether another process could take over what this one
	// releases, and logs a refusal itself. Without it SIGUSR2 is a planned end.
	Detach func(context.Context) bool
	// Reread is called at SIGHUP. Without it SIGHUP is a planned end: the terminal has closed.
	Reread func()
}

// Context returns a context that ends as soon as the process should end. Its cause is the reason,
// and is [election.ErrDetach] for SIGUSR2. Call done once nothing is left to end.
func (s Signals) Context(ctx context.Context) (_ context.Context, done func()) {
	ctx, end := context.WithCancelCause(ctx)
	caught := make(chan os.Signal, 4)
	heeded := slices.DeleteFunc([]os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR2}, signal.Ignored)
	signal.Notify(caught, heeded...)
	over := make(chan struct{})
	go s.heed(ctx, caught, over, end)
	return ctx, func() {
		signal.Stop(caught)
		close(over)
		end(nil)
	}
}

func (s Signals) heed(ctx context.Context, caught <-chan os.Signal, over <-chan struct{}, end context.CancelCauseFunc) {
	for asked := 0; ; {
		var got os.Signal
		select {
		case <-over:
			return
		case got = <-caught:
		}
		switch {
		case got == syscall.SIGHUP && s.Reread != nil:
			s.Reread()
		case got == syscall.SIGUSR2 && s.Detach != nil:
			go func() { // it takes time, and the process may be told to end meanwhile
				if s.Detach(ctx) {
					end(election.ErrDetach)
				}
			}()
		default:
			if asked++; asked > 1 {
				os.Exit(exit.Failure)
			}
			end(fmt.Errorf("the %s was told to end (%v)", s.Who, got))
		}
	}
}
