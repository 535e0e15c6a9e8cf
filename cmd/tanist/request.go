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
	"unicode"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/operate"
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

// carryOut carries out a verb that has been checked, and prints what happens. It is recorded.
func carryOut(ctx context.Context, cmd *cobra.Command, c *operate.Cluster, v operate.Verb) error {
	return carryOutTo(ctx, cmd.OutOrStdout(), cmd.ErrOrStderr(), c, v)
}

func carryOutTo(ctx context.Context, out, errOut io.Writer, c *operate.Cluster, v operate.Verb) error {
	unrecorded, err := c.Run(ctx, v, operate.Asker{Via: "command"}, saying(out))
	if err == nil && unrecorded != nil { // otherwise the error says why
		complain(errOut, "tanist: it is done, but `tanist audit` will not show it: "+clean(unrecorded.Error()))
	}
	return err
}

// saying prints lines. What comes from the store cannot move the cursor.
func saying(out io.Writer) operate.Say {
	return func(line string) {
		fmt.Fprintln(out, strings.Map(func(r rune) rune {
			if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
				return ' '
			}
			return r
		}, strings.ToValidUTF8(line, "\ufffd")))
	}
}

// operator returns the name of the requester, for the history.
func operator() string {
	name := os.Getenv("SUDO_USER")
	if u, err := user.Current(); name == "" && err == nil {
		name = u.Username
	}
	return cmp.Or(name, "unknown")
}
