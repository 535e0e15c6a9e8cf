package haproxy

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tanist/tanist/election"
)

func TestHooksRunInOrderOneAtATime(t *testing.T) {
	a, c := newController(t, "ctl-a"), newController(t, "ctl-b")
	b := newBed(t, nil)
	out := filepath.Join(b.dir, "out")
	// No HAProxy: for users of another proxy.
	b.cfg.ConfigFile, b.cfg.AdminSocket, b.cfg.MasterSocket = "", "", ""
	b.cfg.Hooks = []Hook{
		{Command: []string{"/bin/sh", "-c", `mkdir ` + b.dir + `/lock && echo "first $TANIST_EVENT $TANIST_CLUSTER [$TANIST_OLD] [$TANIST_NEW] $3 ($4)" >>` + out, "x"}},
		{Command: []string{"/bin/sh", "-c", `rmdir ` + b.dir + `/lock && echo "second $1 $2" >>` + out, "x"}},
		{Command: []string{"/bin/sh", "-c", "sleep 600 & wait"}, Timeout: 50 * time.Millisecond},
		{Command: []string{"/nonexistent"}},
	}
	b.startTanist()
	text := func() string { s, _ := os.ReadFile(out); return string(s) }
	step := func(n int) {
		b.until("the hooks ran", func() bool { return strings.Count(text(), "second") == n && b.logs.count(`"hook":3`) == n })
	}
	r := a.record(1, election.StateServing)
	r.Reason = "first start;\n$(evil)"
	b.store.publish(r)
	step(1)
	b.store.publish(a.record(1, election.StateStopping))
	step(2)
	b.store.vacate()
	b.store.publish(c.record(2, election.StateServing))
	step(3)
	want := strings.ReplaceAll(`first serving orders [] [ctl-a] 1 (first start; $(evil))
second - A
first vacant orders [ctl-a] [] 1 (test)
second A -
first serving orders [ctl-a] [ctl-b] 2 (test)
second A C
`, "A", a.url())
	want = strings.ReplaceAll(want, " C\n", " "+c.url()+"\n")
	if got := text(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if n := b.logs.count(`"timed_out":true`); n != 3 {
		t.Errorf("%d hooks timed out, want 3", n)
	}
}

func TestTooManyChangesBecomeFewer(t *testing.T) {
	last, n := Change{}, 0
	q := &election.HookQueue[Change]{Do: func(_ context.Context, c Change) { last, n = c, n+1 }, Merge: merge, Backlog: hookBacklog}
	for i := range hookBacklog + 10 {
		q.Add(Change{Cluster: "orders", Old: string(rune('a' + i%2)), New: string(rune('a' + (i+1)%2)), Term: election.Term(i + 1)})
	}
	ended, end := context.WithCancel(t.Context())
	end()
	q.Run(ended) // what waits is told even so
	if n != hookBacklog || last.Term != hookBacklog+10 || last.beforeOverflow != 10 {
		t.Errorf("%d changes, the last %+v", n, last)
	}
}
