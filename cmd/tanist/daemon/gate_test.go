package daemon

import (
	"slices"
	"testing"
)

func TestGateEnvironment(t *testing.T) {
	got := gateEnvironment([]string{"PGHOST=h", "PGUSER=u", "PGPASSWORD=geheim", "PGPASSFILE=f", "TOKEN=geheim", "HOME=/root", "PGSSLMODE=require"})
	if want := []string{"GOMAXPROCS=4", "PGHOST=h", "HOME=/root", "PGSSLMODE=require"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
