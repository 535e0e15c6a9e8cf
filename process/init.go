package process

import (
	"context"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/process/internal/kernel"
)

// unclaimed is how long a zombie may wait for whoever started it. What nobody has waited for by
// then is an orphan.
const unclaimed = time.Second

// ReapOrphans reaps the orphans that the kernel gives to this process, until ctx ends. A process
// with PID 1, as in a container, has to; one that keeps a program should, for it is a subreaper.
// Orphans of the program itself never come here, but to its guard; those of health checks and hooks
// do. Children that are waited for within a second, as os/exec does, are left alone.
func ReapOrphans(ctx context.Context) {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	defer signal.Stop(ended)
	hunter := kernel.NewHunter()
	for {
		zombies := zombiesOf(hunter, nil)
		var again <-chan time.Time
		if len(zombies) > 0 {
			again = time.After(unclaimed)
		}
		select {
		case <-ctx.Done():
			return
		case <-ended:
			if again == nil {
				continue
			}
			select { // more may come; those that are there have their second first
			case <-ctx.Done():
				return
			case <-again:
			}
		case <-again:
		}
		for pid := range zombiesOf(hunter, zombies) {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG|unix.WALL, nil)
		}
	}
}

// zombiesOf returns the zombies among the children, if old is not nil only those that are in it.
func zombiesOf(h *kernel.Hunter, old map[int]bool) map[int]bool {
	h.N = 0
	h.Children(h.Self)
	zombies := map[int]bool{}
	for _, pid := range h.PIDs[:h.N] {
		if state, ppid, ok := h.Stat(pid); ok && state == 'Z' && ppid == h.Self && (old == nil || old[int(pid)]) {
			zombies[int(pid)] = true
		}
	}
	return zombies
}
