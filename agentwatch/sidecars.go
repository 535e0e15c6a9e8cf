package agentwatch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/tanist/tanist/election"
)

// clusterView is what a sidecar answers at /v1/cluster, as far as it matters here.
type clusterView struct {
	Cluster     string                `json:"cluster"`
	Active      *election.Active      `json:"active"`
	Controllers []election.Controller `json:"controllers"`
}

const (
	askTimeout = 2 * time.Second
	askLimit   = 1 << 20 // bytes of an answer
	askAtOnce  = 8
)

// ask asks sidecars for their view and returns the answers that could be read.
func ask(ctx context.Context, client *http.Client, cluster string, apis []string) (views []clusterView, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, askAtOnce)
	var errs []error
	for _, api := range apis {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			v, err := askOne(ctx, client, api)
			if err == nil && v.Cluster != cluster {
				err = fmt.Errorf("%s is of cluster %q", api, v.Cluster)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
				return
			}
			views = append(views, v)
		})
	}
	wg.Wait()
	return views, errors.Join(errs...)
}

func askOne(ctx context.Context, client *http.Client, api string) (clusterView, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(api, "/")+"/v1/cluster", nil)
	if err != nil {
		return clusterView{}, err
	}
	resp, err := client.Do(req)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		return clusterView{}, fmt.Errorf("cannot ask %s: %v", api, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return clusterView{}, fmt.Errorf("cannot ask %s: status %s", api, resp.Status)
	}
	var v clusterView
	if err := json.NewDecoder(io.LimitReader(resp.Body, askLimit)).Decode(&v); err != nil {
		return clusterView{}, fmt.Errorf("cannot read the answer of %s: %v", api, err)
	}
	return v, nil
}
