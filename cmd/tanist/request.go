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

// errUnchanged ends a command whose question was not answered with yes.
var errUnchanged = errors.New("nothing was changed")

// confirm asks the question, and returns an error unless the answer is one of the words. An
// interruption ends the wait for the answer.
func confirm(ctx context.Context, in io.Reader, out io.Writer, question string, words ...string) error {
	fmt.Fprint(out, question+" ")
	type line struct {
		text string
		err  error
	}
	read := make(chan line, 1)
	go func() { // nothing interrupts a read of a terminal
		text, err := bufio.NewReader(in).ReadString('\n')
		read <- line{strings.TrimSpace(text), err}
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(out)
		return exit.With(exit.Failure, fmt.Errorf("%w: %w", context.Cause(ctx), errUnchanged))
	case answer := <-read:
		switch {
		case slices.ContainsFunc(words, func(word string) bool { return strings.EqualFold(word, answer.text) }):
			return nil
		case answer.err != nil && answer.text == "":
			fmt.Fprintln(out)
			return exit.Errorf(exit.Usage, "no confirmation on standard input: use -y to skip the question")
		}
		return exit.With(exit.Failure, errUnchanged)
	}
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
