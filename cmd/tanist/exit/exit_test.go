package exit

import (
	"errors"
	"testing"

	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election"
)

// TestSameErrorHasTheSameCodeHoweverItIsWrapped: scripts rely on the codes.
func TestSameErrorHasTheSameCodeHoweverItIsWrapped(t *testing.T) {
	for code, err := range map[int]error{
		0:   nil,
		1:   errors.New("x"),
		3:   Errorf(NotActive, "x"),
		5:   Command(5),
		77:  errors.Join(election.ErrDenied),
		78:  config.Problems{{What: "x"}},
		107: errors.Join(errors.New("y"), Errorf(Force, "x")),
	} {
		if got := Code(err); got != code {
			t.Errorf("%v: %d, want %d", err, got, code)
		}
	}
	if got := Code(With(Config, errors.New("x"))); got != Config {
		t.Errorf("a file: %d", got)
	}
	if got := Code(With(Store, election.ErrDenied)); got != Store {
		t.Errorf("a code of its own: %d", got)
	}
}
