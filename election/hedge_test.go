package election

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// never is the delay of an endpoint that does not answer.
const never = time.Hour

// TestHedgeAsksTheNextOnlyWhenItMay: which endpoints are asked, and whose answer counts, in fake
// time. The bubble detects attempts that are left behind.
func TestHedgeAsksTheNextOnlyWhenItMay(t *testing.T) {
	broken, refused := errors.New("broken"), errors.New("refused")
	const step = hedgeAfter
	for name, test := range map[string]struct {
		once    bool
		patient bool
		takes   [3]time.Duration
		fails   [3]error
		unsent  string // endpoints that the request never reaches
		limit   time.Duration
		want    string // endpoint; else part of the error
		after   time.Duration
		asked   string
	}{
		"all well":                       {want: "a", asked: "a"},
		"silent":                         {takes: [3]time.Duration{never}, want: "b", after: step, asked: "ab"},
		"two are silent":                 {takes: [3]time.Duration{never, never}, want: "c", after: 2 * step, asked: "abc"},
		"the first answers after all":    {takes: [3]time.Duration{step + step/2, never}, want: "a", after: step + step/2, asked: "ab"},
		"little time":                    {takes: [3]time.Duration{never, never}, limit: 400 * time.Millisecond, want: "c", after: 200 * time.Millisecond, asked: "abc"},
		"nobody answers":                 {takes: [3]time.Duration{never, never, never}, want: "deadline", after: 3 * time.Second, asked: "abc"},
		"one is broken":                  {fails: [3]error{broken}, want: "b", asked: "ab"},
		"all are broken":                 {fails: [3]error{broken, refused, broken}, want: "broken; refused; broken", asked: "abc"},
		"a conflict is an answer":        {fails: [3]error{ErrConflict}, want: ErrConflict.Error(), asked: "a"},
		"denied is the reason":           {fails: [3]error{broken, ErrDenied, broken}, want: ErrDenied.Error(), asked: "abc"},
		"patient":                        {patient: true, takes: [3]time.Duration{10 * step}, want: "a", after: 10 * step, asked: "a"},
		"once, silent":                   {once: true, takes: [3]time.Duration{never}, want: "deadline", after: 3 * time.Second, asked: "a"},
		"once, broken":                   {once: true, fails: [3]error{broken}, want: "broken", asked: "a"},
		"once, refused":                  {once: true, fails: [3]error{refused}, unsent: "a", want: "b", asked: "ab"},
		"once, no connection":            {once: true, takes: [3]time.Duration{never}, unsent: "a", want: "b", after: step, asked: "ab"},
		"once, no connection to any":     {once: true, takes: [3]time.Duration{never, never, never}, unsent: "abc", want: "deadline", after: 3 * time.Second, asked: "abc"},
		"once, the second is under way":  {once: true, takes: [3]time.Duration{never, never}, unsent: "a", want: "deadline", after: 3 * time.Second, asked: "ab"},
		"once, a conflict at the second": {once: true, fails: [3]error{refused, ErrConflict}, unsent: "a", want: ErrConflict.Error(), asked: "ab"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				limit := 3 * time.Second
				if test.limit > 0 {
					limit = test.limit
				}
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				var mu sync.Mutex
				var asked strings.Builder
				var got, dropped atomic.Int32
				begun := time.Now()
				value, err := FirstAnswer(ctx, &Hedge{Endpoints: 3}, Question[string]{
					Repeatable: !test.once, Patient: test.patient,
					Definite: func(err error) bool { return errors.Is(err, ErrConflict) },
					Drop: func(v string) {
						if v != "" {
							dropped.Add(1)
						}
					},
					Ask: func(ctx context.Context, i int, sent func()) (string, error) {
						name := string(rune('a' + i))
						mu.Lock()
						asked.WriteString(name)
						mu.Unlock()
						if !strings.Contains(test.unsent, name) {
							sent()
						}
						select {
						case <-time.After(test.takes[i]):
						case <-ctx.Done():
							return "", ctx.Err()
						}
						if test.fails[i] != nil {
							return "", test.fails[i]
						}
						got.Add(1)
						return name, nil
					},
				})
				took := time.Since(begun)
				synctest.Wait()
				if err != nil {
					value = err.Error()
				}
				if !strings.Contains(value, test.want) || took != test.after || asked.String() != test.asked {
					t.Errorf("%q after %v, %s were asked; want %q after %v, %s", value, took, asked.String(), test.want, test.after, test.asked)
				}
				if kept := got.Load() - dropped.Load(); err == nil && kept != 1 {
					t.Errorf("%d answers were kept", kept)
				}
			})
		})
	}
}

// TestHedgeAsksFirstWhoAnswered: the endpoint that answers is preferred, for a while if there is a
// home, and one that is known to be down is asked last.
func TestHedgeAsksFirstWhoAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := -1
		h := &Hedge{Endpoints: 3, Home: 5 * time.Second, Down: func(i int) bool { return i == down }}
		want := func(order ...int) {
			t.Helper()
			if got := h.Order(); !slices.Equal(got, order) {
				t.Errorf("order %v, want %v", got, order)
			}
		}
		want(0, 1, 2)
		h.Avoid(1) // is not first
		want(0, 1, 2)
		h.Avoid(0)
		want(1, 2, 0)
		h.Prefer(2)
		want(2, 0, 1)
		down = 2
		want(0, 1, 2)
		down = -1
		time.Sleep(5 * time.Second)
		want(0, 1, 2)
		stays := &Hedge{Endpoints: 3}
		stays.Prefer(1)
		time.Sleep(time.Hour)
		if got := stays.Order(); got[0] != 1 {
			t.Errorf("without a home the order is %v", got)
		}
	})
}

// TestProfilesFitEveryStore: a named profile is valid on each store, and has not changed.
func TestProfilesFitEveryStore(t *testing.T) {
	for _, test := range []struct {
		store Traits
		name  string
		want  Timing
	}{
		{EtcdTraits(), ProfileDefault, Timing{TTL: 5 * time.Second, Validity: 4 * time.Second, RenewEvery: time.Second, StopBudget: time.Second}},
		{EtcdTraits(), ProfileFast, Timing{TTL: 5 * time.Second, Validity: 600 * time.Millisecond, RenewEvery: 200 * time.Millisecond, StopBudget: 200 * time.Millisecond, Beat: true, Silence: 800 * time.Millisecond, LeaderChange: true}},
		{ConsulTraits(), ProfileDefault, Timing{TTL: 10 * time.Second, Validity: 8 * time.Second, RenewEvery: time.Second, StopBudget: time.Second, Beat: true, Silence: 8500 * time.Millisecond}},
		{ConsulTraits(), ProfileFast, Timing{TTL: 10 * time.Second, Validity: 600 * time.Millisecond, RenewEvery: 200 * time.Millisecond, StopBudget: 200 * time.Millisecond, Beat: true, Silence: 800 * time.Millisecond, LeaderChange: true}},
	} {
		test.want.Profile = test.name
		got, err := test.store.Profile(test.name)
		if err != nil || got != test.want {
			t.Errorf("%s on %s: %+v, %v; want %+v", test.name, test.store.Name, got, err, test.want)
		}
		if err := got.Validate(test.store); err != nil {
			t.Errorf("%s on %s: %v", test.name, test.store.Name, err)
		}
	}
}

// TestKeyNames: scripts, access rules and operators rely on the names.
func TestKeyNames(t *testing.T) {
	for got, want := range map[string]string{
		ClusterPath("/"+RootPath, "orders") + ActiveKey: "/tanist/orders/active", ClusterPath(RootPath, "orders") + TermKey: "tanist/orders/term",
		ClusterPath("/", "orders") + URLKey: "/orders/url", BeatKey: "beat", HeirKey: "heir", RequestKey: "request", PauseKey: "pause", StandbyKey: "standby", DeadKey: "dead",
		RoleWordKey("ctl-a"): "role/ctl-a", ControllerKey("ctl-a"): "controllers/ctl-a", AgentKey("agt-1"): "agents/agt-1",
		HistoryKey(7): "history/0000000007",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
