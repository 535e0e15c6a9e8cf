package etcd

import (
	"strings"
	"testing"

	"github.com/tanist/tanist/backends/etcd/etcdtest"
	"github.com/tanist/tanist/election"
)

// TestWarningOfAnEtcdThatFillsUp: of the alarm, of a database that is nearly full, and of a history
// that nobody compacts.
func TestWarningOfAnEtcdThatFillsUp(t *testing.T) {
	c := etcdtest.Start(t, 1)
	h := newHarness(t, c)
	s := h.open(t, c.Endpoints()...)
	says := func(want string) {
		t.Helper()
		got := s.Warning(ctxFor(t, patience))
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("warning %q, want %q in it", got, want)
		}
	}
	says("")
	for range 20 {
		if err := s.Put(ctxFor(t, patience), election.Put{Key: "pause", Value: []byte("{}")}); err != nil {
			t.Fatal(err)
		}
	}
	says("") // the history is short
	s.manyRevisions = 10
	says("has never compacted its history of 2")
	says("days; start etcd with --auto-compaction-mode=periodic")
	if _, err := h.raw.Compact(t.Context(), 15); err != nil {
		t.Fatal(err)
	}
	says("")
	h.Fill(t)
	says("raised the alarm NOSPACE and accepts no writes, so nobody can claim")
	h.Empty(t)
	says("")
	if got := warning([]Server{{Endpoint: "a", Version: "3.7.3", Size: 1900 << 20, Quota: defaultQuota}}); !strings.Contains(got, "has 1900 of 2048 MiB") {
		t.Errorf("warning of a full database: %q", got)
	}
}
