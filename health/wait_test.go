package health

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestWaitPollsQuicklyAndBacksOff(t *testing.T) {
	for _, opens := range []time.Duration{0, 3 * time.Millisecond, 50 * time.Millisecond, 800 * time.Millisecond, 20 * time.Second, 10 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			began, polls := time.Now(), 0
			err := waitFor(t.Context(), "x:1", func(context.Context) error {
				polls++
				if time.Since(began) < opens {
					return errSick
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			late := time.Since(began) - opens
			if bound := min(max(opens/pollPart, pollMin), pollMax); late > bound {
				t.Errorf("opened after %v, seen %v late, want at most %v", opens, late, bound)
			}
			if most := int(opens/pollMax) + 150; polls > most {
				t.Errorf("opened after %v, %d polls, want at most %d", opens, polls, most)
			}
		})
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := errors.New("the controller ended")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(2*time.Second, func() { cancel(gone) })
		began := time.Now()
		calls := 0
		err := waitFor(ctx, "x:1", func(ctx context.Context) error {
			if calls++; calls == 1 {
				return errSick
			}
			<-ctx.Done() // a host that drops packets
			return ctx.Err()
		})
		if !errors.Is(err, gone) || !strings.Contains(err.Error(), "x:1") || !strings.Contains(err.Error(), "last attempt") {
			t.Errorf("error %v", err)
		}
		if d := time.Since(began); d != 2*time.Second {
			t.Errorf("ended after %v, want 2s", d)
		}
	})
}

func TestPortOf(t *testing.T) {
	for _, tc := range []struct{ url, want, err string }{
		{"http://10.0.0.11:8080", "10.0.0.11:8080", ""},
		{"http://10.0.0.11", "10.0.0.11:80", ""},
		{"https://orders.example/app?x=1", "orders.example:443", ""},
		{"https://[::1]:8443/", "[::1]:8443", ""},
		{"https://[::1]", "[::1]:443", ""},
		{"10.0.0.11:8080", "", "cannot read the URL"},
		{"orders:8080", "", "has no host"},
		{"ftp://a", "", "neither http:// nor https://"},
		{"http://", "", "has no host"},
		{"http://a:0", "", "no port from 1"},
		{"http://a:70000", "", "no port from 1"},
		{"http://a:x", "", "invalid port"},
		{"", "", "has no host"},
	} {
		got, err := PortOf(tc.url)
		if got != tc.want || (err == nil) != (tc.err == "") || (err != nil && !strings.Contains(err.Error(), tc.err)) {
			t.Errorf("PortOf(%q) = %q, %v; want %q, %q", tc.url, got, err, tc.want, tc.err)
		}
	}
}
