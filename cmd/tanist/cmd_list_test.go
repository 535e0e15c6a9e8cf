package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tanist/tanist/election"
)

func TestSinceAndMillis(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for d, want := range map[time.Duration]string{
		-time.Hour: "0s", // another host's clock
		0:          "0s", 59 * time.Second: "59s", 14*time.Minute + 3*time.Second: "14m03s", 3*time.Hour + 12*time.Minute: "3h12m",
		47 * time.Hour: "47h00m", 49 * time.Hour: "2d01h",
	} {
		if got := since(now, now.Add(-d)); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
	if got := since(now, time.Time{}); got != "-" {
		t.Errorf("never: %s", got)
	}
	for m, want := range map[election.Millis]string{-1: "-", 0: "-", 6.04: "6.0ms", 41: "41ms", 800: "800ms", 1200: "1.2s", 2000: "2s"} {
		if got := millis(m); got != want {
			t.Errorf("%v: %s, want %s", m, got, want)
		}
	}
}

// TestListNamesWhoIsOnStandbyThoughGoneOrActive: neither has a reason in the table.
func TestListNamesWhoIsOnStandbyThoughGoneOrActive(t *testing.T) {
	var out strings.Builder
	listTable(&out, election.ClusterRecord{
		Cluster: "orders", Active: &election.Active{Controller: "ctl-a", State: election.StateServing}, Gone: []election.Member{{Name: "ctl-b"}},
		Standby: election.Standbys{"ctl-a": {By: "ana"}, "ctl-b": {By: "bob", Ban: true}},
	}, "etcd", "", time.Now())
	for _, want := range []string{
		"\n ctl-a is on standby, by ana; `tanist standby ctl-a off` ends that. It keeps the lease that it has.\n",
		"\n ctl-b is banned by bob; `tanist unban ctl-b` ends that.\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}

// TestListAsksOnlyAnAddress: a sidecar's address from the store is checked, and a redirect is not
// followed.
func TestListAsksOnlyAnAddress(t *testing.T) {
	var asked []string
	var server *httptest.Server
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.String())
		if r.URL.Path == "/moved/v1/status" {
			http.Redirect(w, r, server.URL+"/elsewhere", http.StatusFound)
			return
		}
		fmt.Fprint(w, `{"incarnation":"i","lease_left_ms":2100}`)
	}))
	defer server.Close()
	for api, want := range map[string]string{
		server.URL: "2.1s/", server.URL + "/": "2.1s/", server.URL + "/?x=1": "", server.URL + "/moved": "", "http://u:p@" + server.Listener.Addr().String(): "",
	} {
		if got := leaseLeft(t.Context(), &election.Active{API: api, Incarnation: "i"}); got != want {
			t.Errorf("%s: %q, want %q", api, got, want)
		}
	}
	for _, a := range asked {
		if a != "/v1/status" && a != "/moved/v1/status" {
			t.Errorf("asked for %s", a)
		}
	}
}
