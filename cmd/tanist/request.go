package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"slices"
	"strings"
	"time"

	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
)

// confirm reads a line and returns an error unless it is one of the words.
func confirm(in io.Reader, words ...string) error {
	answer, err := bufio.NewReader(in).ReadString('\n')
	answer = strings.TrimSpace(answer)
	switch {
	case slices.ContainsFunc(words, func(word string) bool { return strings.EqualFold(word, answer) }):
		return nil
	case err != nil && answer == "":
		return exit.Errorf(exit.Usage, "no confirmation on standard input: use -y to move without being asked")
	}
	return exit.Errorf(exit.Failure, "nothing was changed")
}

// ask writes the request unless another one is waiting.
func ask(ctx context.Context, s daemon.Store, r election.Request) error {
	absent := election.Version(0)
	ctx, cancel := context.WithTimeout(ctx, daemon.StoreTimeout)
	defer cancel()
	err := s.Put(ctx, election.Put{Key: election.RequestKey, Value: r.Encode(), If: &absent})
	switch {
	case errors.Is(err, election.ErrConflict):
		return exit.Errorf(exit.Failure, "another request is waiting: see `tanist list`, and `tanist cancel` to withdraw it")
	case err != nil:
		return writeError(err, "the request")
	}
	return nil
}

// phases prints the phases of the lease as they change.
type phases struct {
	out   io.Writer
	begun time.Time
	last  string
}

func (p *phases) see(a *election.Active) {
	phase := "nobody holds the lease"
	if a != nil {
		phase = fmt.Sprintf("%s: %s, term %d", clean(a.Controller), clean(string(a.State)), a.Term)
	}
	if phase != p.last {
		fmt.Fprintf(p.out, "  +%-8s %s\n", time.Since(p.begun).Round(time.Millisecond), phase)
		p.last = phase
	}
}

// await prints the phases of the lease until a snapshot shows how the request ended, or until
// timeout. meanwhile follows the error of a request that has not ended by then.
func await(ctx context.Context, out io.Writer, s daemon.Store, timeout time.Duration, meanwhile string,
	ended func(election.Snapshot) bool,
) (election.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	seen := phases{out: out, begun: time.Now()}
	snap, err := until(ctx, s, func(snap election.Snapshot) bool {
		seen.see(snap.Active)
		return ended(snap)
	})
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = exit.Errorf(exit.InProgress, "still in progress after %v: %s%s", timeout, seen.last, meanwhile)
	}
	return snap, err
}

// operator returns the name of the requester, for the history.
func operator() string {
	name := os.Getenv("SUDO_USER")
	if u, err := user.Current(); name == "" && err == nil {
		name = u.Username
	}
	return cmp.Or(name, "unknown")
}
