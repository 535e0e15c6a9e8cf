package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/tanist/tanist/cmd/tanist/exit"
)

// TestFollowing: a store that blinks does not end `list -w`; one that was never there, and any
// other error, do.
func TestFollowing(t *testing.T) {
	away, broken := storeError(errors.New("no route"), "cannot read the store"), errors.New("broken")
	for _, tc := range []struct {
		name string
		errs []error // one per look; after the last one, ctx ends
		code int
		want string
	}{
		{"it blinks", []error{nil, away, nil}, 0, "here cannot read the store: no route here"},
		{"it was never there", []error{away}, exit.Store, ""},
		{"something else", []error{nil, broken}, exit.Failure, "here"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var out bytes.Buffer
			d := display{output: "table", watch: time.Millisecond}
			err := d.show(ctx, &out, func() (any, func(io.Writer), error) {
				err := tc.errs[0]
				if tc.errs = tc.errs[1:]; len(tc.errs) == 0 && err == nil {
					cancel()
				}
				return nil, func(w io.Writer) { fmt.Fprintln(w, "here") }, err
			})
			if exit.Code(err) != tc.code {
				t.Errorf("code %d, want %d: %v", exit.Code(err), tc.code, err)
			}
			if got := strings.Join(strings.Fields(strings.ReplaceAll(out.String(), "\x1b[H\x1b[2J", "")), " "); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
