package operate

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"time"

	"github.com/tanist/tanist/election"
)

// AskSidecar asks the sidecar at an address from the store what it reports about itself.
func AskSidecar(ctx context.Context, address string, limit time.Duration) (s election.SidecarRecord, ok bool) {
	if address == "" {
		return s, false
	}
	api, err := election.ParseURL(address) // it comes from the store
	if err != nil {
		return s, false
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, api.String()+"/v1/status", nil)
	if err != nil {
		return s, false
	}
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		return s, false
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&s) == nil
}
