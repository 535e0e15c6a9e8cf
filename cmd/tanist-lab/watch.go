package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/election"
)

// The commands that run inside the containers of deploy/compose.

// holdCommand is `tanist-lab hold`: it waits to be stopped. A container that runs nothing else is a
// host, whose network the containers of its programs share.
func holdCommand() *cobra.Command {
	return &cobra.Command{
		Use: "hold", Short: "wait to be stopped", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			<-ctx.Done()
			return nil
		},
	}
}

// watchCommand is `tanist-lab watch`: a user who sends requests all the time, and notes every answer.
func watchCommand() *cobra.Command {
	var o watchOptions
	cmd := &cobra.Command{
		Use: "watch", Short: "send requests to the virtual URL and to each controller, and note the answers", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return watch(ctx, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.virtual, "virtual", "", "the virtual URL")
	f.StringVar(&o.dns, "dns", "", "host:port of the name server that knows the host of the virtual URL")
	f.StringArrayVar(&o.direct, "direct", nil, "`NAME=URL` of a controller (repeatable)")
	f.StringVar(&o.record, "record", "", "directory to note the answers in")
	f.DurationVar(&o.every, "every", 50*time.Millisecond, "time between two requests")
	return cmd
}

type watchOptions struct {
	virtual, dns, record string
	direct               []string
	every                time.Duration
}

func watch(ctx context.Context, o watchOptions) error {
	confirmed, err := appendTo(filepath.Join(o.record, "confirmed-user"))
	if err != nil {
		return err
	}
	virtual := newVirtualProber(o.virtual, o.every, confirmed, dialer(o.dns))
	if virtual.file, err = appendTo(filepath.Join(o.record, "answers-virtual")); err != nil {
		return err
	}
	all := []*prober{virtual}
	for _, d := range o.direct {
		name, url, ok := strings.Cut(d, "=")
		if !ok {
			return fmt.Errorf("--direct %q: write NAME=URL", d)
		}
		p := newDirectProber(name, url, 2*o.every)
		if p.file, err = appendTo(filepath.Join(o.record, "answers-"+name)); err != nil {
			return err
		}
		all = append(all, p)
	}
	fmt.Printf("asking at %s every %v\n", o.virtual, o.every)
	var wg sync.WaitGroup
	for _, p := range all {
		wg.Go(func() { p.run(ctx) })
	}
	wg.Wait()
	return nil
}

// dialer returns how to connect to a host that the name server at address knows; nil, the default,
// without one. Nothing is cached: every connection asks anew.
func dialer(address string) func(ctx context.Context, network, target string) (net.Conn, error) {
	if address == "" {
		return nil
	}
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
	return func(ctx context.Context, network, target string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(target)
		if err != nil {
			return nil, err
		}
		found, err := resolver.LookupHost(ctx, strings.TrimSuffix(host, ".")+".") // the dot: no search domain is tried
		if err != nil {
			return nil, err
		}
		return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(found[0], port))
	}
}

// hangCommand is `tanist-lab hang`: it makes a demo controller hang.
func hangCommand() *cobra.Command {
	return &cobra.Command{
		Use: "hang URL", Short: "make a demo controller hang", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Second)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, args[0]+"/hang", http.NoBody)
			if err != nil {
				return err
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return fmt.Errorf("cannot make it hang: %v", err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusNoContent {
				return fmt.Errorf("cannot make it hang: %s", resp.Status)
			}
			return nil
		},
	}
}

// action is what somebody did to the lab in containers.
type action struct {
	At   election.Instant
	Term uint64 // at that time
	Host string // to which it was done; empty: to none in particular
	What string // kill, hang, …
}

func (a action) line() string { return fmt.Sprintf("%d %d %q %q", a.At, a.Term, a.Host, a.What) }

func parseAction(line string) (a action, err error) {
	var n int
	if n, err = fmt.Sscanf(line, "%d %d %q %q", &a.At, &a.Term, &a.Host, &a.What); err == nil && n != 4 {
		err = errors.New("not four fields")
	}
	return a, err
}

// noteCommand is `tanist-lab note`: it notes an action, with the clock of the containers' kernel.
func noteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "note FILE TERM HOST WHAT", Short: "note what is done to the lab", Hidden: true, Args: cobra.ExactArgs(4),
		RunE: func(_ *cobra.Command, args []string) error {
			term, err := strconv.ParseUint(args[1], 10, 64)
			if err != nil {
				return err
			}
			notes, err := appendTo(args[0])
			if err != nil {
				return err
			}
			return notes.line("%s", action{At: election.BootClock(), Term: term, Host: args[2], What: args[3]}.line())
		},
	}
}
