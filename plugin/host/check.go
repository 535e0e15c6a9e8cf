package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/tanist/tanist/plugin"
	"github.com/tanist/tanist/plugin/internal/pluginv1"
)

// Checker is a plugin that probes controllers.
type Checker struct{ *Plugin }

// OpenChecker starts a plugin that offers a check, and does not wait for it.
func OpenChecker(spec Spec) (*Checker, error) {
	if err := Check(spec.Name, spec.Dirs, spec.SHA256); err != nil {
		return nil, &RefusedError{spec.Name, err}
	}
	return &Checker{launch(spec, func(_ context.Context, i *instance) error {
		if !i.about.Offers("check") {
			return &RefusedError{spec.Name, errors.New("it offers no check")}
		}
		return nil
	})}, nil
}

// Check probes a controller once. A plugin that does not answer, or not in time, has not found the
// controller good.
func (c *Checker) Check(ctx context.Context, call plugin.CheckCall) error {
	i, err := c.instance(ctx)
	if err != nil {
		return err
	}
	request := &pluginv1.CheckRequest{Name: call.Name, Cluster: call.Cluster, Controller: call.Controller, Url: call.URL, Settings: call.Settings.Values}
	if deadline, ok := ctx.Deadline(); ok {
		request.Timeout = durationpb.New(time.Until(deadline))
	}
	var r *pluginv1.CheckResponse
	err = c.watched(ctx, i, func(ctx context.Context) (err error) {
		r, err = pluginv1.NewCheckServiceClient(i.conn).Check(ctx, request)
		return err
	})
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("plugin %s has not answered: %w", c.spec.Name, ctx.Err())
	case err != nil:
		go c.suspect(i)
		return fmt.Errorf("plugin %s: %w", c.spec.Name, words(err))
	case r.GetVerdict() == pluginv1.Verdict_VERDICT_GOOD:
		return nil
	case r.GetDetail() == "":
		return fmt.Errorf("plugin %s found it bad", c.spec.Name)
	}
	return errors.New(printable(r.GetDetail()))
}
