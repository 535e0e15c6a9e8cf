package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/election"
)

func switchoverCommand() *cobra.Command {
	var a access
	var to, reason string
	var yes, noWait bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "switchover [--to NAME]", Short: "Move the active to another controller, as planned", Args: noArgs,
		Long: "Move the active to another controller, as planned: the active is stopped with its full stop_timeout, then the target\n" +
			"starts. Exit codes: 0 done, 75 still in progress when --timeout ran out (ask again with `tanist list`), 1 refused or failed.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd, func(ctx context.Context, s store, c storeConfig) error {
				snap, err := read(ctx, s)
				if err != nil {
					return err
				}
				target, err := chooseTarget(snap, to)
				if err != nil {
					return err
				}
				out := cmd.OutOrStdout()
				if !yes {
					listTable(out, clusterOf(c.Cluster, snap), c.Store, "", time.Now())
					fmt.Fprintf(out, "This stops %s's controller and starts %s's. Continue? [y/N] ", snap.Active.Controller, target)
					answer, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
					if word := strings.ToLower(strings.TrimSpace(answer)); word != "y" && word != "yes" {
						if err != nil && word == "" {
							return exit(exitUsage, "nobody answered; use -y to go on without being asked")
						}
						return exit(exitFailure, "nothing was changed")
					}
				}
				r := election.Request{
					ID: rand.Text()[:10], Op: "switchover", To: to, By: operator(), Reason: reason, Term: snap.Active.Term, For: time.Minute,
				}
				return switchover(ctx, cmd, s, r, timeout, noWait)
			})
		},
	}
	a.flags(cmd)
	cmd.Flags().StringVar(&to, "to", "", "the controller that is to be active (default: any that is ready)")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the history")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "don't ask")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "only ask for the move")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long to wait for the target to serve")
	return cmd
}

// chooseTarget checks that the move can be carried out, and returns whom to name in the question.
func chooseTarget(snap election.Snapshot, to string) (string, error) {
	if !snap.Active.Serving() {
		return "", exit(exitNotActive, "nobody is active, so there is nothing to move: see `tanist explain`")
	}
	if snap.Pause != nil {
		return "", exit(exitFailure, "the cluster is paused by %s: `tanist resume` first", snap.Pause.By)
	}
	if to == snap.Active.Controller {
		return "", exit(exitFailure, "%s is active already", to)
	}
	var ready []string
	for _, k := range snap.Controllers {
		if k.Name == snap.Active.Controller {
			continue
		}
		if k.Name == to && k.State != election.StateReady {
			return "", exit(exitFailure, "%s is %s: %s", to, k.State, cmp.Or(k.Reason, "not ready to take over"))
		}
		if k.State == election.StateReady && (to == k.Name || !k.NoFailover) {
			ready = append(ready, k.Name)
		}
		if k.Name == to {
			return to, nil
		}
	}
	if to != "" {
		return "", exit(exitFailure, "there is no controller %s in this cluster; ready are: %s", to, cmp.Or(strings.Join(ready, ", "), "none"))
	}
	if len(ready) == 0 {
		return "", exit(exitFailure, "no passive is ready to take over: see `tanist explain`")
	}
	return strings.Join(ready, " or "), nil
}

func switchover(ctx context.Context, cmd *cobra.Command, s store, r election.Request, timeout time.Duration, noWait bool) error {
	absent := election.Version(0)
	limited, cancel := context.WithTimeout(ctx, storeTimeout)
	err := s.Put(limited, election.Put{Key: "request", Value: r.Encode(), If: &absent})
	cancel()
	switch {
	case errors.Is(err, election.ErrConflict):
		return exit(exitFailure, "another request is waiting: see `tanist list`, and `tanist cancel` to withdraw it")
	case err != nil:
		return writeError(err, "the request")
	}
	out := cmd.OutOrStdout()
	if noWait {
		fmt.Fprintf(out, "asked for: request %s\n", r.ID)
		return nil
	}
	ctx, cancel = context.WithTimeout(ctx, timeout)
	defer cancel()
	begun := time.Now()
	var down time.Time
	last, refused := "", false
	snap, err := until(ctx, s, func(snap election.Snapshot) bool {
		phase := "nobody holds the lease"
		if a := snap.Active; a != nil {
			phase = fmt.Sprintf("%s: %s, term %d", a.Controller, a.State, a.Term)
		}
		if phase != last {
			fmt.Fprintf(out, "  +%-8s %s\n", time.Since(begun).Round(time.Millisecond), phase)
			last = phase
		}
		if !snap.Active.Serving() && down.IsZero() {
			down = time.Now()
		}
		// A request that is gone while the old reign serves was found void by the active.
		refused = snap.Active.Serving() && snap.Active.Term == r.Term && snap.Request == nil
		return refused || (snap.Active.Serving() && snap.Active.Term > r.Term)
	})
	switch {
	case err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return exit(exitInProgress, "still in progress after %v: %s", timeout, last)
	case err != nil:
		return err
	case refused:
		return exit(exitFailure, "%s refused the move: the target is not ready any more; its log has the reason", snap.Active.Controller)
	}
	outage := "too short to be seen here"
	if !down.IsZero() {
		outage = time.Since(down).Round(time.Millisecond).String()
	}
	fmt.Fprintf(out, "%s is active, term %d. Outage %s.\n", snap.Active.Controller, snap.Active.Term, outage)
	if r.To != "" && snap.Active.Controller != r.To {
		return exit(exitFailure, "%s did not make it, and %s took over", r.To, snap.Active.Controller)
	}
	return nil
}

func cancelCommand() *cobra.Command {
	var a access
	cmd := &cobra.Command{
		Use: "cancel", Short: "Withdraw a switchover that was asked for and has not begun", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd, func(ctx context.Context, s store, c storeConfig) error {
				snap, err := read(ctx, s)
				if err != nil {
					return err
				}
				out := cmd.OutOrStdout()
				if snap.Request == nil {
					fmt.Fprintln(out, "nothing was asked for in "+c.Cluster)
					return nil
				}
				limited, cancel := context.WithTimeout(ctx, storeTimeout)
				defer cancel()
				err = s.Delete(limited, "request", snap.RequestVer)
				if errors.Is(err, election.ErrConflict) {
					return exit(exitFailure, "the request has changed meanwhile: see `tanist list`")
				}
				if err != nil {
					return writeError(err, "the withdrawal")
				}
				r := snap.Request
				fmt.Fprintf(out, "withdrew the %s to %s that %s asked for\n", clean(r.Op), cmp.Or(clean(r.To), "any passive"), clean(r.By))
				if !snap.Active.Serving() || snap.Active.Term != r.Term {
					fmt.Fprintln(out, "It may have begun already: see `tanist list`.")
				}
				return nil
			})
		},
	}
	a.flags(cmd)
	return cmd
}

// operator names who asks, for the history.
func operator() string {
	name := os.Getenv("SUDO_USER")
	if u, err := user.Current(); name == "" && err == nil {
		name = u.Username
	}
	return cmp.Or(name, "unknown")
}

func pauseCommand() *cobra.Command {
	var a access
	var reason string
	cmd := &cobra.Command{
		Use: "pause", Short: "Keep things as they are: nothing fails over until `tanist resume`", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd, func(ctx context.Context, s store, c storeConfig) error {
				value, err := json.Marshal(election.Pause{By: operator(), Reason: reason, Since: time.Now().UTC()})
				if err != nil {
					return err
				}
				absent := election.Version(0)
				limited, cancel := context.WithTimeout(ctx, storeTimeout)
				defer cancel()
				err = s.Put(limited, election.Put{Key: "pause", Value: value, If: &absent})
				if errors.Is(err, election.ErrConflict) {
					fmt.Fprintln(cmd.OutOrStdout(), c.Cluster+" is paused already")
					return nil
				}
				if err != nil {
					return writeError(err, "the pause")
				}
				fmt.Fprintln(cmd.OutOrStdout(), c.Cluster+" is paused: nothing fails over until `tanist resume`")
				return nil
			})
		},
	}
	a.flags(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "why, for everybody who looks")
	return cmd
}

func resumeCommand() *cobra.Command {
	var a access
	cmd := &cobra.Command{
		Use: "resume", Short: "End a pause", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd, func(ctx context.Context, s store, c storeConfig) error {
				limited, cancel := context.WithTimeout(ctx, storeTimeout)
				defer cancel()
				if err := s.Delete(limited, "pause", 0); err != nil {
					return writeError(err, "the end of the pause")
				}
				fmt.Fprintln(cmd.OutOrStdout(), c.Cluster+" is not paused")
				return nil
			})
		},
	}
	a.flags(cmd)
	return cmd
}
