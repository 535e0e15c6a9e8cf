package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/tanist/tanist/cmd/tanist/exit"
)

// TestAQuestionEndsWithTheInterruption: a read of a terminal does not, so the command would hang.
func TestAQuestionEndsWithTheInterruption(t *testing.T) {
	in, typist := io.Pipe()
	defer typist.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	asked := writerFunc(func(text []byte) {
		if strings.HasSuffix(string(text), "[y/N] ") {
			cancel(errors.New("the command was told to end (interrupt)"))
		}
	})
	err := interrupted(ctx, confirm(ctx, in, asked, "Continue? [y/N]", "y"))
	if want := "the command was told to end (interrupt): nothing was changed"; err == nil || err.Error() != want || exit.Code(err) != exit.Failure {
		t.Errorf("got %v, want %s", err, want)
	}
}

// writerFunc is a writer of a function.
type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }
