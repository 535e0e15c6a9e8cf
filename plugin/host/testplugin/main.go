// Testplugin is the plugin of package host's tests: the store of package file, with the faults that a
// file names, and a check that does as it is told.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/plugin"
	"github.com/tanist/tanist/plugin/file"
)

func main() {
	p := file.Plugin()
	p.OpenStore = func(s plugin.Settings) (plugin.Store, error) {
		f := &faulty{file: s.Values["faults"]}
		delete(s.Values, "faults")
		store, err := file.Open(s)
		f.Store = store
		return f, err
	}
	p.Check = func(ctx context.Context, c plugin.CheckCall) error {
		if c.Settings.Values["must"] == "hang" {
			<-time.After(time.Hour)
		}
		if c.Settings.Values["must"] != "pass" {
			return errors.New("the test said so")
		}
		return nil
	}
	switch os.Getenv("TEST_PLUGIN") {
	case "dies":
		fmt.Fprintln(os.Stderr, "no licence")
		os.Exit(3)
	case "hangs":
		select {}
	case "babbles":
		fmt.Println("hello")
		select {}
	case "next":
		fmt.Println("1|2|unix|/nowhere|grpc|")
		select {}
	}
	plugin.Serve(p)
}

// faulty is a store with the faults that a file has at the time of the call.
type faulty struct {
	plugin.Store
	file string

	mu    sync.Mutex
	first plugin.View // of the first read of the role key
	held  plugin.View // of the first renewal
}

// fault returns what is to go wrong.
func (f *faulty) fault() string {
	b, _ := os.ReadFile(f.file) // none
	return strings.TrimSpace(string(b))
}

// strike carries out the faults that do not depend on the call.
func (f *faulty) strike() string {
	what := f.fault()
	switch what {
	case "slow":
		time.Sleep(2 * time.Second) // and then does it all the same
	case "crash":
		os.Exit(9)
	case "freeze":
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		time.Sleep(time.Hour) // not all threads stop at once
	}
	return what
}

func (f *faulty) Read(ctx context.Context, q plugin.Query) (plugin.View, error) {
	what := f.strike()
	v, err := f.Store.Read(ctx, q)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.first.Revision == 0 && len(v.Entries) > 0 {
		f.first = v
	}
	switch what {
	case "old":
		return f.first, nil
	case "malformed":
		for i := range v.Entries {
			v.Entries[i].Version = 0
		}
	case "terms":
		for i, e := range v.Entries {
			if e.Key == election.TermKey {
				v.Entries[i].Value = []byte("1")
			}
		}
	}
	return v, err
}

func (f *faulty) Renew(ctx context.Context, lease election.LeaseID) error {
	if what := f.strike(); what == "lies" || what == "old" || what == "malformed" {
		return nil // it renews nothing
	}
	return f.Store.Renew(ctx, lease)
}

func (f *faulty) Commit(ctx context.Context, c plugin.Change) (plugin.View, error) {
	what := f.strike()
	f.mu.Lock()
	first := f.held
	f.mu.Unlock()
	switch what {
	case "lies", "old": // it commits nothing, and answers as it did before
		return first, nil
	case "malformed":
		return plugin.View{Entries: []election.Entry{{Key: "rm -rf /", Version: 1}}, Revision: 1 << 62}, nil
	}
	v, err := f.Store.Commit(ctx, c)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil && c.Bound != nil && len(c.Read) > 0 && f.held.Revision == 0 {
		f.held = v
	}
	return v, err
}
