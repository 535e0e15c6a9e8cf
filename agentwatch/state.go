package agentwatch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/google/renameio/v2"

	"github.com/tanist/tanist/election"
)

// Peer is what is known of a controller.
type Peer struct {
	Controller string `json:"controller,omitempty"`
	URL        string `json:"url,omitempty"` // its startup port is probed
	API        string `json:"api,omitempty"` // its sidecar's REST interface is asked

	at election.URL // of URL
}

// memory is the part of the picture that outlives a restart. It is a cache: without it the watch only
// knows less at its start.
type memory struct {
	Cluster string        `json:"cluster"`
	Term    election.Term `json:"term"`             // the highest term seen
	Active  *Aim          `json:"active,omitempty"` // the last one named
	Known   []Peer        `json:"known,omitempty"`
}

func loadMemory(path, cluster string) (memory, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return memory{}, nil
	}
	if err != nil {
		return memory{}, fmt.Errorf("cannot read the state file: %v", err)
	}
	var m memory
	if err := json.Unmarshal(b, &m); err != nil {
		return memory{}, fmt.Errorf("cannot read the state file %s: %v", path, err)
	}
	if m.Cluster != cluster {
		return memory{}, fmt.Errorf("cannot use the state file %s: it is of cluster %q", path, m.Cluster)
	}
	return m, nil
}

func (m memory) save(path string) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(path, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("cannot write the state file: %v", err)
	}
	return nil
}
