package election

import "sync"

// RoleMemory is the version of the role key as a process last wrote or read it. It spares a store the
// look before each publication, which must compare the version lest an abandoned publication that
// arrives late undo a later one. If the memory is out of date, the transaction that relies on it
// fails, and the store has to look after all. The zero value remembers nothing. Its methods may be
// called from any goroutine.
type RoleMemory struct {
	mu      sync.Mutex
	lease   LeaseID
	version Version
}

// Wrote remembers the version that a write bound to lease gave to the role key; zero: the outcome of
// the write is unknown.
func (m *RoleMemory) Wrote(lease LeaseID, version Version) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lease, m.version = lease, version
}

// Read remembers the role key if it is among entries, so that an heir, for whom another wrote it,
// need not look. Answers can overtake each other, so a newer version stays.
func (m *RoleMemory) Read(entries []Entry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range entries {
		if e.Key == ActiveKey && e.Lease != "" && e.Version > m.version {
			m.lease, m.version = e.Lease, e.Version
		}
	}
}

// Current returns the version of the role key while it is bound to lease: from memory or, with anew
// and if it is not there, by look. It returns [ErrLost] if the key is bound to something else.
func (m *RoleMemory) Current(lease LeaseID, anew bool, look func() (Entry, error)) (Version, error) {
	if at := m.Version(lease); at != 0 && !anew {
		return at, nil
	}
	e, err := look()
	if err == nil && e.Lease != lease {
		err = ErrLost
	}
	return e.Version, err
}

// Version returns the version of the role key while it is bound to lease; zero: unknown.
func (m *RoleMemory) Version(lease LeaseID) Version {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lease != lease {
		return 0
	}
	return m.version
}
