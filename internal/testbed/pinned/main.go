// Pinned builds the pinned tools that the tests run against, unless they are in the cache, and
// prints their paths, one per line. It is for scripts and task runners: to fill the cache before
// the tests, whose timeouts do not allow for compilers, or to put the tools into a PATH.
//
// It guarantees that a path it prints is a complete binary of the pinned version. It does not
// remove older versions from the cache.
//
// # Usage
//
//	go run ./internal/testbed/pinned                 # etcd, etcdctl and consul
//	go run ./internal/testbed/pinned etcd etcdctl    # these
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"

	"github.com/tanist/tanist/internal/testbed"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := printPaths(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1) //nolint:gocritic // nothing needs undoing
	}
}

func printPaths(ctx context.Context, names []string) error {
	for _, tool := range []testbed.Tool{testbed.Etcd(), testbed.Etcdctl(), testbed.Consul()} {
		if len(names) > 0 && !slices.Contains(names, tool.Name) {
			continue
		}
		bin, err := tool.Build(ctx)
		if err != nil {
			return err
		}
		fmt.Println(bin)
	}
	return nil
}
