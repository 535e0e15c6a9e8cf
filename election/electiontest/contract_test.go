package electiontest_test

import (
	"testing"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
)

// memory is a harness on the store in memory.
type memory struct {
	store *electiontest.Store
	n     int
}

func (m *memory) client() *electiontest.Client {
	m.n++
	return m.store.Client(string(rune('a' + m.n)))
}

func (m *memory) Open(*testing.T) electiontest.Host { return m.client() }

func (m *memory) OpenLinked(*testing.T) (electiontest.Host, electiontest.Link) {
	c := m.client()
	return c, link{c}
}

func (m *memory) Overwrite(_ *testing.T, key, value string) { m.store.Overwrite(key, value) }
func (m *memory) OverwriteKept(_ *testing.T, key, value string) {
	m.store.OverwriteKept(key, value)
}
func (m *memory) EndLease(_ *testing.T, lease election.LeaseID) { m.store.RevokeEarly(lease) }
func (m *memory) Fill(*testing.T)                               { m.store.RefuseWrites(true) }
func (m *memory) Empty(*testing.T)                              { m.store.RefuseWrites(false) }
func (m *memory) Remove(_ *testing.T, key string)               { m.store.Remove(key) }
func (m *memory) Stop(*testing.T)                               { m.store.Down() }
func (m *memory) Start(*testing.T)                              { m.store.Up() }

func (m *memory) StallWatch(_ *testing.T, h electiontest.Host) { h.(*electiontest.Client).StallWatch() }

func (m *memory) ResumeWatch(_ *testing.T, h electiontest.Host) {
	h.(*electiontest.Client).ResumeWatch()
}

type link struct{ c *electiontest.Client }

func (l link) Hold()        { l.c.Partition() }
func (l link) HoldReplies() { l.c.LoseReplies(1 << 30) }
func (l link) Cut()         { l.c.Partition() }
func (l link) Heal()        { l.c.LoseReplies(0); l.c.Heal() }

func TestContract(t *testing.T) {
	electiontest.Contract(t, func(*testing.T) electiontest.Harness {
		return &memory{store: electiontest.NewStore()}
	})
}

var (
	_ electiontest.Host = (*electiontest.Client)(nil)
	_ election.Backend  = (*electiontest.Client)(nil)
)
