package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/cmd/tanist/daemon"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
)

func logsCommand() *cobra.Command {
	var a access
	var d display
	var most int
	cmd := &cobra.Command{
		Use: "logs [NAME]", Short: "Show the last output of a controller's program, as its sidecar has it",
		Long: "Show the last output of a controller's program, as its sidecar has it: of the active, or of NAME, even after the program has failed.\n" +
			"The sidecar keeps it in memory with `run.output: log` (the last 1000 lines, 256 KiB), and reads the end of the file with `file:PATH`.\n" +
			"With `inherit` and `journal` the output does not pass through it, and the command says where it is. The sidecar is asked over its\n" +
			"REST interface (listen.http); another host needs the token of listen.secret_file, which is read from the file given by -c.",
		Example: "  tanist logs -c orders.yml ctl-a -n 20",
		Args:    atMostOne,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := d.check(); err != nil {
				return err
			}
			if most < 1 {
				return exit.Errorf(exit.Usage, "-n %d shows nothing: give 1 or more", most)
			}
			return a.reading(cmd, func(ctx context.Context, r reading) error {
				return d.show(ctx, cmd.OutOrStdout(), func() (any, func(io.Writer), error) {
					o, err := readOutput(ctx, r, args)
					if err != nil {
						return nil, nil, err
					}
					o.Lost = o.Lost || len(o.Lines) > most
					o.Lines = o.Lines[max(0, len(o.Lines)-most):]
					return o, func(out io.Writer) { outputTable(out, o) }, nil
				})
			})
		},
	}
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.completeControllers(cmd, args, typed)
	}
	a.flags(cmd)
	d.flags(cmd)
	cmd.Flags().IntVarP(&most, "lines", "n", 100, "how many lines to show")
	return cmd
}

// readOutput asks the sidecar of the named controller, or of the active.
func readOutput(ctx context.Context, r reading, args []string) (election.OutputRecord, error) {
	name := ""
	if len(args) == 1 {
		name = args[0]
	} else {
		a, err := r.operated().Serving()
		if err != nil {
			return election.OutputRecord{}, exit.Errorf(exit.Code(err), "%v: give the name of a controller", err)
		}
		name = a.Controller
	}
	i := slices.IndexFunc(r.snap.Controllers, func(c election.Controller) bool { return c.Name == name })
	if i < 0 {
		return election.OutputRecord{}, exit.Errorf(exit.Failure, "the sidecar of %q is not here, so nobody can be asked: `tanist list` shows who is", name)
	}
	return askOutput(ctx, r.where, r.snap.Controllers[i])
}

// askOutput asks the sidecar of c for the output of its program.
func askOutput(ctx context.Context, where daemon.StoreConfig, c election.Controller) (o election.OutputRecord, err error) {
	api, err := election.ParseURL(c.API) // it comes from the store
	if c.API == "" || err != nil {
		return o, exit.Errorf(exit.Failure, "the sidecar of %s has no address that others reach: set listen.http, or listen.advertise", c.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, api.String()+election.OutputDocument, nil)
	if err != nil {
		return o, err
	}
	if k := where.Controller; k != nil && k.Listen.SecretFile != "" {
		if token, err := daemon.SecretFile(k.Listen.SecretFile); err == nil { // the file may be from another host
			req.Header.Set("Authorization", "Bearer "+token)
		}
	}
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		return o, exit.Errorf(exit.Failure, "cannot ask the sidecar of %s: %v", c.Name, errors.Unwrap(err))
	}
	defer resp.Body.Close()
	body := json.NewDecoder(io.LimitReader(resp.Body, 4<<20))
	if resp.StatusCode != http.StatusOK {
		var p struct{ Detail, Title string }
		_ = body.Decode(&p) // an older version, or another server
		code := exit.Failure
		if resp.StatusCode == http.StatusUnauthorized {
			code = exit.Denied
		}
		return o, exit.Errorf(code, "the sidecar of %s does not show the output (%s): %s", c.Name, resp.Status, clean(cmp.Or(p.Detail, p.Title, "its version does not know how")))
	}
	// From here, an address like 127.0.0.1 may belong to another sidecar.
	if err := body.Decode(&o); err != nil || o.Incarnation != c.Incarnation {
		return o, exit.Errorf(exit.Failure, "%s is not the sidecar of %s: ask on its host", clean(c.API), c.Name)
	}
	return o, nil
}

func outputTable(out io.Writer, o election.OutputRecord) {
	if o.Elsewhere != "" {
		fmt.Fprintf(out, "The output of %s is in %s.\n", clean(o.Controller), clean(o.Elsewhere))
		return
	}
	if len(o.Lines) == 0 {
		fmt.Fprintf(out, "The program of %s has written nothing since its sidecar started.\n", clean(o.Controller))
	}
	if o.Lost {
		fmt.Fprintln(out, "…")
	}
	for _, line := range o.Lines {
		fmt.Fprintln(out, clean(line))
	}
}
