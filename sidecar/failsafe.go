package sidecar

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tanist/tanist/election"
)

// Peers carries asks between the sidecars of a cluster over HTTP. A secret that all of them share
// authenticates both directions, so a stranger can neither promise a holder anything nor obtain a
// promise. A nonce binds each answer to its ask. Each ask is valid once, for the process that it
// was addressed to.
type Peers struct {
	Cluster string
	Name    string
	Secret  []byte        // at least 16 bytes
	Timeout time.Duration // of one ask; later answers do not count
	Client  *http.Client  // nil: a private one

	mu   sync.Mutex
	last []asked // the latest askers, the most recent last
	seq  uint64
}

// asked is the highest sequence seen from one incarnation.
type asked struct {
	incarnation string
	sequence    uint64
}

// askersKept is the number of askers remembered. Only one holds the lease at a time.
const askersKept = 32

// AskPath is the path at which a sidecar accepts asks (POST).
const AskPath = "/v1/failsafe"

type askMessage struct {
	election.Ask
	Cluster  string `json:"cluster"`
	To       string `json:"to"`
	Nonce    string `json:"nonce"`
	Sequence uint64 `json:"sequence"`
}

type askAnswer struct {
	Nonce   string `json:"nonce"`
	From    string `json:"from"`
	Refused string `json:"refused,omitempty"`
}

const (
	signatureHeader = "Tanist-Signature"
	askLimit        = 64 << 10
)

func (p *Peers) sign(body []byte) string {
	mac := hmac.New(sha256.New, p.Secret)
	mac.Write(body)
	return hex.EncodeToString(mac.Sum(nil))
}

func (p *Peers) signed(body []byte, signature string) bool {
	return hmac.Equal([]byte(p.sign(body)), []byte(signature))
}

// Ask asks all passives of a at once, and returns nil only if all have promised to leave the lease.
func (p *Peers) Ask(ctx context.Context, a election.Ask) error {
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	errs := make([]error, len(a.Passives))
	var asking sync.WaitGroup
	for i, passive := range a.Passives {
		asking.Go(func() {
			if err := p.askOne(ctx, a, passive); err != nil {
				errs[i] = fmt.Errorf("%s: %v", passive.Name, err)
			}
		})
	}
	asking.Wait()
	return errors.Join(errs...)
}

func (p *Peers) askOne(ctx context.Context, a election.Ask, passive election.Controller) error {
	if passive.API == "" {
		return errors.New("it has no API address: set listen.http")
	}
	p.mu.Lock()
	// A later process of the same sidecar may continue the reign and the sequence, which follows
	// the host's clock.
	p.seq = max(p.seq+1, uint64(election.BootClock()))
	m := askMessage{Ask: a, Cluster: p.Cluster, To: passive.Name, Nonce: rand.Text(), Sequence: p.seq}
	p.mu.Unlock()
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(passive.API, "/")+AskPath, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(signatureHeader, p.sign(body))
	client := p.Client
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	reply, err := io.ReadAll(io.LimitReader(resp.Body, askLimit))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("it answered %s", resp.Status)
	}
	var answer askAnswer
	if !p.signed(reply, resp.Header.Get(signatureHeader)) || json.Unmarshal(reply, &answer) != nil {
		return errors.New("its answer is not signed with the cluster's secret")
	}
	switch {
	case answer.Nonce != m.Nonce || answer.From != passive.Name:
		return errors.New("it answered another ask")
	case answer.Refused != "":
		return fmt.Errorf("it refused: %s", answer.Refused)
	}
	return nil
}

// Handler accepts asks and answers them with the result of promise.
func (p *Peers) Handler(promise func(election.Ask) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, askLimit))
		if err != nil {
			http.Error(w, "cannot read the ask", http.StatusBadRequest)
			return
		}
		var m askMessage
		switch {
		case !p.signed(body, r.Header.Get(signatureHeader)):
			http.Error(w, "the ask is not signed with the cluster's secret", http.StatusForbidden)
			return
		case json.Unmarshal(body, &m) != nil:
			http.Error(w, "cannot read the ask", http.StatusBadRequest)
			return
		case m.Cluster != p.Cluster || m.To != p.Name:
			http.Error(w, "the ask is for another sidecar", http.StatusForbidden)
			return
		case !p.fresh(m):
			http.Error(w, "the ask is a repetition", http.StatusConflict)
			return
		}
		answer := askAnswer{Nonce: m.Nonce, From: p.Name}
		if err := promise(m.Ask); err != nil {
			answer.Refused = err.Error()
		}
		reply, err := json.Marshal(answer)
		if err != nil {
			http.Error(w, "cannot answer", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set(signatureHeader, p.sign(reply))
		_, _ = w.Write(reply) // a client that has gone has no promise, which is safe
	})
}

// fresh reports whether m is new.
func (p *Peers) fresh(m askMessage) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := slices.IndexFunc(p.last, func(a asked) bool { return a.incarnation == m.Incarnation })
	if at >= 0 {
		if m.Sequence <= p.last[at].sequence {
			return false
		}
		p.last = slices.Delete(p.last, at, at+1)
	}
	p.last = append(p.last, asked{m.Incarnation, m.Sequence})
	if n := len(p.last) - askersKept; n > 0 {
		p.last = slices.Delete(p.last, 0, n)
	}
	return true
}
