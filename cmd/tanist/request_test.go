package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/election/electiontest"
	"github.com/tanist/tanist/operate"
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

// TestWhatHappenedDuringTheQuestionCounts: an answer is about what is true then.
func TestWhatHappenedDuringTheQuestionCounts(t *testing.T) {
	for what, during := range map[string]struct {
		key, value, want string
	}{
		"alive":    {election.TermKey, "7 held controller=ctl-a incarnation=i1 validity=5s ttl=10s mode=store nonce=n7", "the cluster has changed while you were asked"},
		"released": {election.TermKey, "7 clean controller=ctl-a incarnation=i1 validity=5s ttl=10s mode=store nonce=n7", "there is nothing to confirm"},
	} {
		store := electiontest.NewStore().Client("operator")
		write := func(key, value string) {
			if err := store.Put(t.Context(), election.Put{Key: key, Value: []byte(value)}); err != nil {
				t.Fatal(err)
			}
		}
		write(election.TermKey, "7 held controller=ctl-a incarnation=i1 validity=50s ttl=1m0s mode=store nonce=n7")
		snap, err := read(t.Context(), store)
		if err != nil {
			t.Fatal(err)
		}
		cmd := &cobra.Command{}
		cmd.SetIn(io.MultiReader(strings.NewReader("y\n"), readerFunc(func() { write(during.key, during.value) }), strings.NewReader("ctl-a\n")))
		cmd.SetOut(io.Discard)
		c := confirmation{ConfirmDead: operate.ConfirmDead{Name: "ctl-a", Timeout: time.Millisecond}}
		if err := c.run(t.Context(), cmd, reading{store: store, cluster: "orders", snap: snap}); err == nil || !strings.Contains(err.Error(), during.want) || exit.Code(err) != exit.Failure {
			t.Errorf("%s: got %v, want %q", what, err, during.want)
		}
		if e, err := store.Get(t.Context(), election.DeadKey); err != nil || e.Version != 0 {
			t.Errorf("%s: confirmed all the same: %s, %v", what, e.Value, err)
		}
	}
}

// readerFunc calls a function when it is reached, and has no content.
type readerFunc func()

func (f readerFunc) Read([]byte) (int, error) { f(); return 0, io.EOF }

// writerFunc is a writer of a function.
type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }
