package daemon

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/api"
	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election/electiontest"
	"github.com/tanist/tanist/operate"
	"github.com/tanist/tanist/sidecar"
)

// inMemory is a store in memory and a client of it.
type inMemory struct {
	*electiontest.Client
	memory *electiontest.Store
}

// servedSidecar returns the server of a sidecar as it is wired, and its store. The tokens are the
// roles, repeated.
func servedSidecar(t *testing.T) (*api.Server, inMemory) {
	t.Helper()
	cfg, dir := config.NewController(), t.TempDir()
	cfg.Cluster, cfg.Name = "orders", "ctl-a"
	for _, role := range []string{"viewer", "operator", "admin"} {
		file := filepath.Join(dir, role)
		if err := os.WriteFile(file, []byte("an-old-one-"+role+"\n"+strings.Repeat(role, 4)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg.Listen.Access = append(cfg.Listen.Access, config.Access{Role: role, TokenFile: file})
	}
	memory := electiontest.NewStore()
	store := inMemory{memory.Client("ctl-a"), memory}
	p := &sidecarProcess{cfg: cfg, backend: store, log: zerolog.Nop(), self: Self{Log: OpenLog(config.Log{Level: "info", Format: "json"}, io.Discard), Events: func(context.Context, Store) api.Stream {
		return func(context.Context) <-chan api.Event {
			none := make(chan api.Event)
			close(none)
			return none
		}
	}}}
	p.store, p.fit = newStoreWatch(store, cfg.Name, p.log), newFitness(cfg)
	var down teardown
	t.Cleanup(func() {
		var err error
		if down.unwind(&err); err != nil {
			t.Error(err)
		}
	})
	s := sidecar.New(sidecar.Config{Cluster: "orders", Name: "ctl-a", Backend: store, Log: p.log})
	return api.New(p.served(t.Context(), s, newOperations(t.Context(), "orders", "ctl-a", store, p.log, &down))), store
}

// openAPI is what the tests read of an OpenAPI description.
type openAPI struct {
	Paths map[string]map[string]struct {
		Summary     string         `json:"summary"`
		OperationID string         `json:"operationId"`
		Role        string         `json:"x-tanist-role"`
		Responses   map[string]any `json:"responses"`
	} `json:"paths"`
	Components struct {
		Schemas map[string]any `json:"schemas"`
	} `json:"components"`
}

func descriptionOf(t *testing.T, s *api.Server) (doc openAPI, text string) {
	t.Helper()
	w := from(s, net.IPv4(10, 0, 0, 11), http.MethodGet, api.OpenAPIPath, "", "")
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || w.Code != http.StatusOK {
		t.Fatalf("%d, %v", w.Code, err)
	}
	return doc, w.Body.String()
}

// from sends a request as if it had arrived at an address.
func from(s *api.Server, at net.IP, method, path, token, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: at}))
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// TestEveryRouteIsDescribed: the OpenAPI description has every route of a sidecar, each with a
// sentence, and whatever it has is answered.
func TestEveryRouteIsDescribed(t *testing.T) {
	s, _ := servedSidecar(t)
	doc, text := descriptionOf(t, s)
	ids := map[string]bool{}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			if op.Summary == "" || ids[op.OperationID] || len(op.Responses) == 0 {
				t.Errorf("%s %s: %+v", method, path, op)
			}
			ids[op.OperationID] = true
			w := from(s, net.IPv4(127, 0, 0, 1), strings.ToUpper(method), strings.NewReplacer("{name}", "ctl-x", "{id}", "none").Replace(path), strings.Repeat("admin", 4), "")
			if op.Responses[strconv.Itoa(w.Code)] == nil {
				t.Errorf("%s %s: the response %d is not described: %s", method, path, w.Code, w.Body)
			}
			if strings.Contains(w.Body.String(), "there is nothing at") {
				t.Errorf("%s %s is described and not there", method, path)
			}
		}
	}
	want := []string{
		"/", "/active", "/leader", "/live", "/metrics", "/passive", "/primary", "/read-write", "/ready", "/v1/bans/{name}", "/v1/cluster", "/v1/confirm-dead",
		"/v1/events", "/v1/failover", "/v1/history", "/v1/members/{name}", "/v1/openapi.json", "/v1/operations", "/v1/operations/{id}", "/v1/output", "/v1/pause",
		"/v1/request", "/v1/restart", "/v1/standbys/{name}", "/v1/status", "/v1/switchover",
	}
	if got := slices.Sorted(maps.Keys(doc.Paths)); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	for _, ref := range strings.Split(text, `"$ref":"#/components/schemas/`)[1:] {
		name, _, _ := strings.Cut(ref, `"`)
		if doc.Components.Schemas[name] == nil {
			t.Errorf("there is no schema %s", name)
		}
	}
	page, err := os.ReadFile("../../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	for path := range doc.Paths {
		if !strings.Contains(string(page), "`"+path+"`") && !strings.Contains(string(page), " "+path+"`") {
			t.Errorf("docs/api.md does not have %s", path)
		}
	}
}

// TestNobodyChangesAnythingWithoutTheRole: of every route of the OpenAPI description that changes
// something, a caller who has not shown who it is gets 401, one with too low a role 403, and the
// store is as it was.
func TestNobodyChangesAnythingWithoutTheRole(t *testing.T) {
	s, store := servedSidecar(t)
	doc, _ := descriptionOf(t, s)
	here, other := net.IPv4(127, 0, 0, 1), net.IPv4(10, 0, 0, 11)
	writes := 0
	for path, methods := range doc.Paths {
		for method, op := range methods {
			if method == "get" {
				continue
			}
			writes++
			if op.Role != "operator" && op.Role != "admin" {
				t.Fatalf("%s %s is for the role %q", method, path, op.Role)
			}
			for _, c := range []struct {
				name, token string
				at          net.IP
				want        int
			}{
				{"nobody, from another host", "", other, 401},
				{"nobody, from this host", "", here, 401},
				{"a wrong token, from another host", strings.Repeat("wrong", 4), other, 401},
				{"a wrong token, from this host", strings.Repeat("wrong", 4), here, 401},
				{"a viewer", strings.Repeat("viewer", 4), here, 403},
				{"an operator", strings.Repeat("operator", 4), here, map[string]int{"operator": 0, "admin": 403}[op.Role]},
				{"an admin over an open line", strings.Repeat("admin", 4), other, 403},
			} {
				if c.want == 0 {
					continue
				}
				before := store.memory.Changes()
				w := from(s, c.at, strings.ToUpper(method), strings.ReplaceAll(path, "{name}", "ctl-a"), c.token, `{"force":true}`)
				if w.Code != c.want || !strings.Contains(w.Body.String(), "this needs the role "+op.Role) {
					t.Errorf("%s: %s %s: %d %s", c.name, method, path, w.Code, w.Body)
				}
				if len(store.memory.Changes()) != len(before) {
					t.Errorf("%s: %s %s has changed something", c.name, method, path)
				}
			}
		}
	}
	if writes < 10 {
		t.Errorf("only %d routes change something", writes)
	}
	for path, methods := range doc.Paths {
		for method := range methods {
			w := from(s, here, strings.ToUpper(method), strings.ReplaceAll(path, "{name}", "ctl-a"), "an-old-one-admin", "")
			if w.Code == 401 || w.Code == 403 {
				t.Errorf("the admin is denied: %s %s: %d %s", method, path, w.Code, w.Body)
			}
		}
	}
}

// TestAnOperationIsShownAndRecorded: 202, its progress, its end, and the record that `tanist audit`
// shows.
func TestAnOperationIsShownAndRecorded(t *testing.T) {
	s, store := servedSidecar(t)
	here, token := net.IPv4(127, 0, 0, 1), strings.Repeat("operator", 4)
	for body, want := range map[string]string{
		`{"for":"soon"}`:  "it is not a duration",
		`{"fro":"2h"}`:    `unknown field \"fro\"`,
		`{"for":"2h"} {}`: "more than one JSON value",
		`{"for":"1ms"}`:   "less than a second",
	} {
		if w := from(s, here, http.MethodPut, "/v1/pause", token, body); w.Code != 400 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s", body, w.Code, w.Body)
		}
	}
	w := from(s, here, http.MethodPut, "/v1/pause", token, `{"for":"2h","reason":"maintenance"}`)
	var d OperationDocument
	if err := json.Unmarshal(w.Body.Bytes(), &d); err != nil || w.Code != http.StatusAccepted || w.Header().Get("Location") != "/v1/operations/"+d.ID || d.ID == "" {
		t.Fatalf("%d %v %s %s", w.Code, w.Header(), w.Body, err)
	}
	for end := time.Now().Add(30 * time.Second); d.State == "running"; time.Sleep(10 * time.Millisecond) {
		w = from(s, here, http.MethodGet, "/v1/operations/"+d.ID, "", "")
		if err := json.Unmarshal(w.Body.Bytes(), &d); err != nil || time.Now().After(end) {
			t.Fatalf("%s %v", w.Body, err)
		}
	}
	if d.State != "done" || d.By != "operator" || d.Via != "token" || d.Role != "operator" || d.Command != "tanist pause --for 2h0m0s --reason maintenance" ||
		len(d.Said) != 1 || !strings.HasPrefix(d.Said[0], "orders is paused: nothing fails over for 2h0m0s") {
		t.Errorf("%+v", d)
	}
	all, err := operate.ReadAudit(t.Context(), store)
	if err != nil || len(all) != 1 || all[0].ID != d.ID || all[0].Outcome != "done" {
		t.Errorf("%+v %v", all, err)
	}
	if w := from(s, here, http.MethodGet, "/v1/operations/none", "", ""); w.Code != 404 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := from(s, here, http.MethodPost, "/v1/switchover", token, ""); w.Code != 409 || !strings.Contains(w.Body.String(), "nobody is active") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := from(s, here, http.MethodPut, "/v1/standbys/ctl-x", token, ""); w.Code != 404 || !strings.Contains(w.Body.String(), "there is no controller") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
