package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/election"
)

// withStore opens the store for one command.
func (a *access) with(cmd *cobra.Command, do func(ctx context.Context, s store, c storeConfig) error) (err error) {
	ctx, done := signals(cmd.Context(), "command")
	defer done()
	s, c, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if closing := s.Close(); err == nil {
			err = closing
		}
	}()
	return interrupted(ctx, do(ctx, s, c))
}

// interrupted tells the interruption, if there was one, and not what it looks like from within.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return exit(exitFailure, "%v; what was asked for before that goes on: see `tanist list`", context.Cause(ctx))
	}
	return err
}

// read reads the cluster once.
func read(ctx context.Context, s store) (election.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	snap, err := s.Read(ctx)
	if err != nil {
		return snap, storeError(err, "the store can't be read")
	}
	return snap, nil
}

// storeError gives what a store answered its exit code.
func storeError(err error, what string) error {
	if errors.Is(err, election.ErrDenied) {
		return exit(exitDenied, "%s: %v: give this user or token the rights that `tanist doctor` names", what, err)
	}
	return exit(exitStore, "%s: %v", what, err)
}

// writeError is storeError for a write, of which it may not be known whether it was carried out.
func writeError(err error, what string) error {
	if errors.Is(err, election.ErrDenied) {
		return storeError(err, what+" could not be written")
	}
	return exit(exitStore, "%s could not be written for sure: %v: see `tanist list`", what, err)
}

func isActiveCommand() *cobra.Command {
	var a access
	cmd := &cobra.Command{
		Use: "is-active [NAME]", Short: "Exit with 0 if NAME (or anybody) is active, with 3 if not", Args: atMostOne,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd, func(ctx context.Context, s store, c storeConfig) error {
				snap, err := read(ctx, s)
				if err != nil {
					return err
				}
				if !snap.Active.Serving() {
					return exit(exitNotActive, "nobody is active in %s", c.Cluster)
				}
				if len(args) == 1 && snap.Active.Controller != args[0] {
					return exit(exitNotActive, "%s is active, not %s", clean(snap.Active.Controller), args[0])
				}
				fmt.Fprintln(cmd.OutOrStdout(), clean(snap.Active.Controller))
				return nil
			})
		},
	}
	a.flags(cmd)
	return cmd
}

func atMostOne(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return exit(exitUsage, "unexpected argument %q; see `%s --help`", args[1], cmd.CommandPath())
	}
	return nil
}

func urlCommand() *cobra.Command {
	var a access
	cmd := &cobra.Command{
		Use: "url", Short: "Print the URL of the active controller", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd, func(ctx context.Context, s store, c storeConfig) error {
				snap, err := read(ctx, s)
				if err != nil {
					return err
				}
				if !snap.Active.Serving() {
					return exit(exitNotActive, "nobody is active in %s", c.Cluster)
				}
				if snap.Active.URL == "" {
					return exit(exitNotActive, "%s is active in %s, and publishes no URL", clean(snap.Active.Controller), c.Cluster)
				}
				// It goes into scripts, and is from the store: it is checked like everything from there.
				u, err := url.Parse(snap.Active.URL)
				if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || snap.Active.URL != clean(snap.Active.URL) {
					return exit(exitFailure, "the URL of %s in the store is no URL: %q: find out who wrote it", clean(snap.Active.Controller), snap.Active.URL)
				}
				if len(c.Allowed) > 0 && !slices.Contains(c.Allowed, snap.Active.URL) {
					return exit(exitFailure, "%s is active at %s, which is not one of the controllers in %s", clean(snap.Active.Controller), snap.Active.URL, c.File)
				}
				fmt.Fprintln(cmd.OutOrStdout(), snap.Active.URL)
				return nil
			})
		},
	}
	a.flags(cmd)
	return cmd
}

func waitCommand() *cobra.Command {
	var a access
	var conditions string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "wait --for CONDITIONS", Short: "Wait until the cluster is as wanted", Args: noArgs,
		Long: "Wait until the cluster is as wanted. Conditions, separated by commas, are:\n" +
			"  active            somebody is active\n  controller=NAME   NAME is active\n  term>N            the active's term is higher than N",
		RunE: func(cmd *cobra.Command, _ []string) error {
			holds, err := parseConditions(conditions)
			if err != nil {
				return err
			}
			return a.with(cmd, func(ctx context.Context, s store, c storeConfig) error {
				ctx, cancel := context.WithTimeout(ctx, timeout)
				defer cancel()
				_, err := until(ctx, s, holds)
				if errors.Is(err, context.DeadlineExceeded) {
					return exit(exitInProgress, "not within %v: %s", timeout, conditions)
				}
				return err
			})
		},
	}
	a.flags(cmd)
	cmd.Flags().StringVar(&conditions, "for", "active", "what to wait for")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to wait; then exit with 75")
	return cmd
}

func parseConditions(text string) (func(election.Snapshot) bool, error) {
	var all []func(election.Snapshot) bool
	for c := range strings.SplitSeq(text, ",") {
		name, isName := strings.CutPrefix(c, "controller=")
		bound, _ := strings.CutPrefix(c, "term>")
		n, scanErr := strconv.ParseUint(bound, 10, 63)
		switch {
		case c == "active":
			all = append(all, func(s election.Snapshot) bool { return s.Active.Serving() })
		case isName && name != "":
			all = append(all, func(s election.Snapshot) bool { return s.Active.Serving() && s.Active.Controller == name })
		case scanErr == nil && bound != c:
			all = append(all, func(s election.Snapshot) bool { return s.Active.Serving() && uint64(s.Active.Term) > n })
		default:
			return nil, exit(exitUsage, "%q is not a condition: active, controller=NAME or term>N", c)
		}
	}
	return func(s election.Snapshot) bool {
		for _, holds := range all {
			if !holds(s) {
				return false
			}
		}
		return true
	}, nil
}

// until looks at every change, and every second, until what holds.
func until(ctx context.Context, s store, holds func(election.Snapshot) bool) (election.Snapshot, error) {
	hints := s.Watch(ctx)
	for {
		limited, cancel := context.WithTimeout(ctx, storeTimeout)
		snap, err := s.Read(limited)
		cancel()
		if err == nil && holds(snap) {
			return snap, nil
		}
		timer := time.NewTimer(time.Second)
		select {
		case <-ctx.Done():
			timer.Stop()
			return snap, context.Cause(ctx)
		case <-hints:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func explainCommand() *cobra.Command {
	var a access
	cmd := &cobra.Command{
		Use: "explain", Short: "Say why things are as they are, controller by controller", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd, func(ctx context.Context, s store, c storeConfig) error {
				snap, err := read(ctx, s)
				if err != nil {
					return err
				}
				out := cmd.OutOrStdout()
				switch {
				case snap.ActiveBad != nil:
					fmt.Fprintf(out, "The role key can't be read, so nobody is followed: %v\n", snap.ActiveBad)
				case snap.Active == nil && snap.Breadcrumb.Term == 0:
					fmt.Fprintln(out, "Nobody has been active yet.")
				case snap.Active == nil:
					how := "vanished without a release: its validity is waited out by the next one"
					if snap.Breadcrumb.Clean {
						how = "released its lease clean" + because(snap.Breadcrumb.Reason)
					}
					fmt.Fprintf(out, "Nobody is active. The last one, %s (term %d), %s.\n", clean(snap.Breadcrumb.Controller), snap.Breadcrumb.Term, how)
				default:
					fmt.Fprintf(out, "%s holds the lease, term %d, state %s since %s%s.\n", clean(snap.Active.Controller), snap.Active.Term,
						clean(string(snap.Active.State)), snap.Active.Since.Local().Format(time.DateTime), because(snap.Active.Reason))
				}
				if snap.Pause != nil {
					fmt.Fprintf(out, "The cluster is paused by %s%s. Nothing fails over until `tanist resume`.\n", clean(snap.Pause.By), because(snap.Pause.Reason))
				}
				if r := snap.Request; r != nil {
					fmt.Fprintf(out, "%s asked for a %s of term %d to %s%s; `tanist cancel` withdraws it.\n", clean(r.By), clean(r.Op), r.Term,
						cmp.Or(clean(r.To), "any passive"), because(r.Reason))
				}
				for _, k := range snap.Controllers {
					if snap.Active != nil && k.Name == snap.Active.Controller {
						continue
					}
					why := "it would take over"
					switch {
					case k.NoFailover:
						why = "it would not take over by itself: nofailover is set"
					case k.State != election.StateReady:
						why = "it would not take over" + because(k.Reason)
					}
					fmt.Fprintf(out, "%s is %s, priority %d: %s.\n", clean(k.Name), clean(string(k.State)), k.Priority, why)
					if f := k.Failure; f != nil {
						fmt.Fprintf(out, "  Its last reign, term %d, failed at %s%s.\n", f.Term, f.At.Local().Format(time.DateTime), because(f.Why))
					}
				}
				if len(snap.Controllers) == 0 {
					fmt.Fprintf(out, "No sidecar of %s is there: start them with `tanist sidecar -c FILE`.\n", c.Cluster)
				}
				return nil
			})
		},
	}
	a.flags(cmd)
	return cmd
}
