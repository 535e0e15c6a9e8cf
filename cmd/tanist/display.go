package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/exit"
)

// display is how a command shows its document: as table, json or yaml, once or continuously.
type display struct {
	output string
	watch  time.Duration
}

func (d *display) flags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&d.output, "output", "o", "table", "table, json or yaml")
	cmd.Flags().DurationVarP(&d.watch, "watch", "w", 0, "repeat at this interval (-w=2s)")
	cmd.Flags().Lookup("watch").NoOptDefVal = "2s"
}

func (d *display) check() error {
	if d.output != "table" && d.output != "json" && d.output != "yaml" {
		return exit.Errorf(exit.Usage, "-o %q is not one of table, json, yaml", d.output)
	}
	return nil
}

// show prints doc or its table, once or until ctx ends. While following it reports a lost store,
// and continues when the store is back.
func (d *display) show(ctx context.Context, out io.Writer, get func() (doc any, table func(io.Writer), err error)) error {
	shown := false
	for {
		doc, table, err := get()
		output := d.output
		switch {
		case err == nil:
		case d.watch > 0 && ctx.Err() != nil:
			return nil //nolint:nilerr // interrupted: following ends that way
		case d.watch > 0 && shown && exit.Code(err) == exit.Store:
			output = "error"
		default:
			return err
		}
		shown = true
		switch output {
		case "error":
			if d.output == "table" {
				fmt.Fprintln(out, " "+clean(err.Error()))
			}
		case "json":
			b, err := json.MarshalIndent(doc, "", "  ")
			if err != nil {
				return err
			}
			fmt.Fprintln(out, string(b))
		case "yaml":
			// Convert through JSON, so that both formats have the same keys.
			b, err := json.Marshal(doc)
			if err != nil {
				return err
			}
			y, err := yaml.JSONToYAML(b)
			if err != nil {
				return err
			}
			fmt.Fprint(out, string(y))
		default:
			if d.watch > 0 {
				fmt.Fprint(out, "\x1b[H\x1b[2J")
			}
			table(out)
		}
		if d.watch <= 0 {
			return nil
		}
		timer := time.NewTimer(d.watch)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}
