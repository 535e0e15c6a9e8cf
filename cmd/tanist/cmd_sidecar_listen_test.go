package main

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/tanist/tanist/backends/etcd/etcdtest"
	"github.com/tanist/tanist/internal/testbed"
)

// TestNothingChangesWithoutTheSecret: every client of the REST interface may read. No request
// changes anything unless it is signed with the cluster's secret.
func TestNothingChangesWithoutTheSecret(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	servers := etcdtest.Start(t, 1)
	start, access := soloSidecar(t, servers.Endpoints()[0])
	secret, address := filepath.Join(testbed.Dir(t), "secret"), testbed.Address(t)
	if err := os.WriteFile(secret, []byte(strings.Repeat("geheim ", 5)), 0o600); err != nil {
		t.Fatal(err)
	}
	edit(t, access[1], `listen: {http: ""}`, "on_store_loss: failsafe\nfailsafe: {secret_file: "+secret+"}\nlisten: {http: \""+address+"\"}")
	p := testbed.Start(t, start())
	p.Await(`"state":"serving"`, patience)
	paths := []string{"/", "/active", "/passive", "/live", "/ready", "/metrics", "/v1/status", "/v1/cluster", "/v1/history", "/v1/events", "/v1/failsafe", "/v1/operations", "/v1/openapi.json", "/v1/switchover", "/v1/restart", "/v1/pause", "/v1/standbys/ctl-a", "/v1/confirm-dead", "/nowhere"}
	reads := []string{http.MethodGet, http.MethodHead, http.MethodOptions}
	for _, method := range append(reads, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, "PURGE") {
		for _, path := range paths {
			req, err := http.NewRequestWithContext(t.Context(), method, "http://"+address+path, strings.NewReader(`{"cluster":"orders","to":"ctl-a","term":1}`))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Tanist-Signature", "00")
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if !slices.Contains(reads, method) && !slices.Contains([]int{401, 403, 404, 405}, resp.StatusCode) {
				t.Errorf("%s %s: %d", method, path, resp.StatusCode)
			}
		}
	}
	if strings.Contains(p.Text(), "promised a holder") || quiet(t.Context(), append([]string{"is-active", "ctl-a"}, access...)...) != 0 {
		t.Error("a stranger's request changed something")
	}
	if e := firstEvent(t, "http://"+address+"/v1/events", "serving"); e.Name != "ctl-a" || e.Term != 1 || e.At.IsZero() {
		t.Errorf("the stream tells of %+v", e)
	}
	p.Signal(syscall.SIGTERM)
	if err := p.End(patience); err != nil {
		t.Error(err)
	}
}

// firstEvent follows a stream until the first event of a kind.
func firstEvent(t *testing.T, url, kind string) (e event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("the stream is %q", got)
	}
	found := false
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		data, is := strings.CutPrefix(lines.Text(), "data: ")
		switch {
		case lines.Text() == "event: "+kind:
			found = true
		case found && is:
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				t.Error(err)
			}
			return e
		}
	}
	t.Errorf("the stream does not tell of %q", kind)
	return e
}
