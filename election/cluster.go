package election

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// The documents of a sidecar's REST interface, which the command line prints and agentwatch reads.

// ClusterDocument is the path where a sidecar shows its [ClusterRecord].
const ClusterDocument = "/v1/cluster"

// ClusterRecord is the state of a whole cluster, as one sidecar or the command line sees it.
type ClusterRecord struct {
	Cluster     string       `json:"cluster"`
	Term        Term         `json:"term"`
	Active      *Active      `json:"active"`
	Controllers []Controller `json:"controllers"`
	Gone        []Member     `json:"gone,omitempty"` // members whose sidecars are not here
	Agents      []Agent      `json:"agents"`
	VIPHosts    []VIPHost    `json:"vip_hosts,omitempty"` // where tanist vip runs
	Pause       *Pause       `json:"pause,omitempty"`
	Request     *Request     `json:"request,omitempty"`
	Standby     Standbys     `json:"standby,omitempty"`  // who must not become active
	Problems    []string     `json:"problems,omitempty"` // names of unreadable keys
	Stale       bool         `json:"stale"`              // the store was unreadable; this is what was seen last
}

// ClusterOf returns the state of the named cluster in s. Agents and VIPHosts are not part of a
// snapshot.
func ClusterOf(name string, s Snapshot) ClusterRecord {
	c := ClusterRecord{
		Cluster: name, Term: s.Breadcrumb.Term, Active: s.Active, Controllers: s.Controllers, Agents: []Agent{},
		Pause: s.Pause, Request: s.Request, Standby: s.Standbys,
	}
	for _, bad := range []error{s.ActiveBad, s.TermBad, s.RequestBad, s.PauseBad, s.StandbyBad, s.DeadBad} {
		if bad != nil {
			c.Problems = append(c.Problems, bad.Error())
		}
	}
	if c.Controllers == nil {
		c.Controllers = []Controller{}
	}
	return c
}

// SidecarRecord is what one sidecar reports about itself at /v1/status.
type SidecarRecord struct {
	Cluster string `json:"cluster"`
	Controller
	Term        Term   `json:"term"`
	LeaseLeftMS Millis `json:"lease_left_ms"`
	Alone       bool   `json:"alone,omitempty"` // continues without the store
	Store       string `json:"store"`           // ok, or why it is unreachable
	Decision    Code   `json:"decision,omitempty"`
	Why         string `json:"why,omitempty"`
}

// OutputDocument is the path where a sidecar shows its [OutputRecord].
const OutputDocument = "/v1/output"

// OutputRecord is the last output of a controller's program.
type OutputRecord struct {
	Cluster     string   `json:"cluster"`
	Controller  string   `json:"controller"`
	Incarnation string   `json:"incarnation"` // of the sidecar
	Output      string   `json:"output"`      // run.output
	Lines       []string `json:"lines"`
	Lost        bool     `json:"lost,omitempty"`      // there were more
	Elsewhere   string   `json:"elsewhere,omitempty"` // where the output is, if the sidecar does not have it
}

// Secret is shared by the sidecars of a cluster and the agentwatches that ask them. A response that
// is signed with it comes from one of them.
type Secret []byte

// minSecret is the minimum number of bytes of a [Secret].
const minSecret = 16

// Validate returns an error if s is too short to protect anything.
func (s Secret) Validate() error {
	if len(s) < minSecret {
		return fmt.Errorf("the secret has fewer than %d characters: make one with `openssl rand -hex 32`", minSecret)
	}
	return nil
}

// The headers of a signed document: the request carries a nonce, and the response the signature of
// [Secret.SignAnswer].
const (
	NonceHeader     = "Tanist-Nonce"
	SignatureHeader = "Tanist-Signature"
)

// ProofHeader is the header of [Secret.Prove].
const ProofHeader = "Tanist-Proof"

// maxNonce bounds what a stranger can make a sidecar sign.
const maxNonce = 128

// SignAnswer returns the signature of a document. It covers the path, so that one document cannot
// pass for another, and the asker's nonce, so that an old response cannot pass for a new one. It
// returns "" for an invalid nonce.
func (s Secret) SignAnswer(path, nonce string, body []byte) string {
	if nonce == "" || len(nonce) > maxNonce {
		return ""
	}
	mac := hmac.New(sha256.New, s)
	fmt.Fprintf(mac, "tanist answer\n%d %s\n%d %s\n", len(path), path, len(nonce), nonce)
	mac.Write(body)
	return hex.EncodeToString(mac.Sum(nil))
}

// Prove returns the proof that the sender of a request has the secret: the signature of its path and
// nonce. An eavesdropper can repeat the request, but learns only what it has already overheard.
func (s Secret) Prove(path, nonce string) string {
	mac := hmac.New(sha256.New, s)
	fmt.Fprintf(mac, "tanist question\n%d %s\n%d %s\n", len(path), path, len(nonce), nonce)
	return hex.EncodeToString(mac.Sum(nil))
}

// Proved reports whether proof is the result of [Secret.Prove].
func (s Secret) Proved(path, nonce, proof string) bool {
	return len(s) > 0 && nonce != "" && len(nonce) <= maxNonce && hmac.Equal([]byte(s.Prove(path, nonce)), []byte(proof))
}

// Answered reports whether signature is the result of [Secret.SignAnswer].
func (s Secret) Answered(path, nonce string, body []byte, signature string) bool {
	want := s.SignAnswer(path, nonce, body)
	return want != "" && hmac.Equal([]byte(want), []byte(signature))
}
