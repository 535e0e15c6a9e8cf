package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/health"
	"github.com/tanist/tanist/sidecar"
)

// TestDocumentsHaveLists: a script that asks for the length of a list gets one, never null.
func TestDocumentsHaveLists(t *testing.T) {
	b, err := json.Marshal(election.ClusterOf("orders", election.Snapshot{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{`"controllers":[]`, `"agents":[]`, `"active":null`} {
		if !strings.Contains(string(b), part) {
			t.Errorf("%s is not in %s", part, b)
		}
	}
}

// TestOnlyWhatFollowersAcceptIsAdvertised: an address that they refuse would make them refuse the
// whole record.
func TestOnlyWhatFollowersAcceptIsAdvertised(t *testing.T) {
	for listen, want := range map[string]string{
		"10.0.0.11:8710": "http://10.0.0.11:8710", "ctl-a:8710": "http://ctl-a:8710", "[2001:db8::1]:8710": "http://[2001:db8::1]:8710",
		":8710": "", "0.0.0.0:8710": "", "[::]:8710": "", "10.0.0.11:0": "", "[fe80::1%eth0]:8710": "", "": "", "nonsense": "",
	} {
		if got := advertised(config.Listen{HTTP: listen}); got != want {
			t.Errorf("%q: %q, want %q", listen, got, want)
		}
	}
}

// TestMetricsOfChecksAreOfNow: those of health while the controller runs, those of fit while it does
// not.
func TestMetricsOfChecksAreOfNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		check := func(name string, err error) health.Check {
			return health.Check{Name: name, Run: func(context.Context) error { return err }}
		}
		p := &sidecarProcess{
			checks: health.NewMonitor(health.Config{
				Interval: time.Second, Timeout: time.Second, Rise: 1, Fall: 1, Checks: []health.Check{check("http", nil), check("disk", errors.New("full"))},
			}, zerolog.Nop()),
			fit: &fitness{checks: []*fitCheck{newFitCheck("config", time.Minute, func(context.Context) error { return errors.New("exit status 3") })}},
		}
		in := func(state election.State) string {
			var text []string
			for _, s := range p.checkSamples(sidecar.View{Status: election.Controller{State: state}}) {
				text = append(text, fmt.Sprintf("%s{%s} %v", s.Name, s.Labels["check"], s.Value))
			}
			return strings.Join(text, ", ")
		}
		if got := in(election.StateStarting) + in(election.StateReady); got != "" {
			t.Errorf("before any result: %s", got)
		}
		go p.checks.Run(ctx, func(bool, string, time.Time) {})
		go p.fit.loop(ctx)
		_ = p.fit.checks[0].result(ctx)
		synctest.Wait()
		if got := in(election.StateServing); got != "tanist_check_up{http} 1, tanist_check_up{disk} 0" {
			t.Errorf("while it serves: %s", got)
		}
		if got := in(election.StateUnfit); got != "tanist_fit_up{config} 0" {
			t.Errorf("while it is passive: %s", got)
		}
		cancel()
		synctest.Wait()
	})
}
