package postgres

import (
	"testing"

	"github.com/tanist/tanist/postgres/private"
)

func stopProcess(t testing.TB, pid int) {
	t.Helper()
	if err := private.Freeze(t.Context(), pid); err != nil {
		t.Fatal(err)
	}
}

func continueProcess(pid int) { private.Thaw(pid) }
