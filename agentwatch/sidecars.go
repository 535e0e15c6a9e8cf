package agentwatch

import (
	"context"
	"crypto/rand"
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

const (
	askTimeout = 2 * time.Second
	askLimit   = 1 << 20 // bytes of a response
	askAtOnce  = 8
)

// asker asks sidecars for their picture of the cluster. A response counts only if it is signed with
// the cluster's secret, for this very request: another process at a sidecar's address can't forge
// one.
type asker struct {
	client  *http.Client
	cluster string
	secret  func() (election.Secret, error)
}

// all asks sidecars and returns the verified responses.
func (a asker) all(ctx context.Context, apis []string) (answers []election.ClusterRecord, err error) {
	secret, err := a.secret()
	if err == nil {
		err = secret.Validate()
	}
	if err != nil {
		return nil, fmt.Errorf("cannot ask sidecars: %v", err)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, askAtOnce)
	var errs []error
	for _, api := range apis {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			c, err := a.one(ctx, api, secret)
			if err == nil && c.Cluster != a.cluster {
				err = fmt.Errorf("%s is of cluster %.80q", api, c.Cluster)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
				return
			}
			answers = append(answers, c)
		})
	}
	wg.Wait()
	return answers, errors.Join(errs...)
}

func (a asker) one(ctx context.Context, api string, secret election.Secret) (election.ClusterRecord, error) {
	var c election.ClusterRecord
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(api, "/")+election.ClusterDocument, nil)
	if err != nil {
		return c, err
	}
	nonce := rand.Text()
	req.Header.Set(election.NonceHeader, nonce)
	req.Header.Set(election.ProofHeader, secret.Prove(election.ClusterDocument, nonce))
	resp, err := a.client.Do(req)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		return c, fmt.Errorf("cannot ask %s: %v", api, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return c, fmt.Errorf("cannot ask %s: status %s", api, resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, askLimit))
	if err != nil {
		return c, fmt.Errorf("cannot read the answer of %s: %v", api, err)
	}
	if !secret.Answered(election.ClusterDocument, nonce, body, resp.Header.Get(election.SignatureHeader)) {
		return c, fmt.Errorf("cannot believe %s: its answer is not signed with the cluster's secret: set the same failsafe.secret_file there and here", api)
	}
	if err := json.Unmarshal(body, &c); err != nil {
		return c, fmt.Errorf("cannot read the answer of %s: %v", api, err)
	}
	return c, nil
}
