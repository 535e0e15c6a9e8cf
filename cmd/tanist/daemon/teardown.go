package daemon

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// teardown undoes the start of a process in reverse order, even a partial start.
type teardown struct {
	undo []func() error
}

// add registers how to undo the last step.
func (d *teardown) add(undo func() error) { d.undo = append(d.undo, undo) }

// beside runs a process's services in their own goroutines. They outlive the process's own work, so
// that it can be queried to the end, and stop with the teardown.
func (d *teardown) beside(ctx context.Context, run ...func(context.Context)) (around context.Context) {
	around, stop := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	for _, r := range run {
		running.Go(func() { r(around) })
	}
	d.add(func() error {
		stop()
		running.Wait()
		return nil
	})
	return around
}

// unwind undoes everything and adds failures to err.
func (d *teardown) unwind(err *error) {
	for _, undo := range slices.Backward(d.undo) {
		if wrong := undo(); wrong != nil {
			*err = errors.Join(*err, wrong)
		}
	}
	d.undo = nil
}
