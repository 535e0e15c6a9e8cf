// Pinned builds the etcd and etcdctl that the tests use, if they are not in the cache, and prints where they are, one path
// per line. It is for scripts and task runners: warm the cache once, or put the tools into a PATH.
//
//	go run ./backends/etcd/etcdtest/pinned
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/tanist/tanist/backends/etcd/etcdtest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	etcd, etcdctl, err := etcdtest.Build(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1) //nolint:gocritic // nothing is left to be undone
	}
	fmt.Println(etcd)
	fmt.Println(etcdctl)
}
