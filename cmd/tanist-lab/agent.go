package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tanist/tanist/election"
)

// agentCommand is `tanist-lab agent`: a client that sends work to the one controller that it was
// started with. It records each confirmed piece of work.
func agentCommand() *cobra.Command {
	var name, server, record, failures string
	var every time.Duration
	cmd := &cobra.Command{
		Use: "agent", Short: "the lab's demo agent", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return runAgent(ctx, name, server, record, failures, every)
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "prefix of the ids")
	cmd.Flags().StringVar(&server, "server", "", "URL of the controller")
	cmd.Flags().StringVar(&record, "record", "", "file to note the confirmed ids in")
	cmd.Flags().StringVar(&failures, "failures", "", "file to note the ids in that were not confirmed, once per attempt")
	cmd.Flags().DurationVar(&every, "every", 50*time.Millisecond, "time between two pieces of work")
	return cmd
}

func runAgent(ctx context.Context, name, server, record, failures string, every time.Duration) error {
	notes, err := appendTo(record)
	if err != nil {
		return err
	}
	var failed *syncFile
	if failures != "" {
		if failed, err = appendTo(failures); err != nil {
			return err
		}
	}
	fmt.Printf("%s sends its work to %s\n", name, server)
	client := &http.Client{Timeout: 2 * time.Second}
	run := election.BootClock()
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for n := 1; ; {
		id := fmt.Sprintf("%s-%d-%d", name, run, n)
		a, err := sendWork(ctx, client, server, id)
		switch {
		case err == nil:
			if err := notes.line("%s", (confirmed{ID: id, Term: a.Term, At: election.BootClock()}).line()); err != nil {
				return fmt.Errorf("cannot note a confirmation: %v", err)
			}
			n++
		case ctx.Err() == nil:
			fmt.Printf("%s is not confirmed: %v\n", id, err) // the same id is sent again
			if failed != nil {
				if err := failed.line("%s %d", id, election.BootClock()); err != nil {
					return fmt.Errorf("cannot note a failure: %v", err)
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// sendWork asks a controller for one row. If it returns nil, the row was confirmed.
func sendWork(ctx context.Context, client *http.Client, server, id string) (answer, error) {
	form := url.Values{"id": {id}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(server, "/")+"/work", strings.NewReader(form.Encode()))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return ask(client, req)
}

// ask sends a request to a demo controller.
func ask(client *http.Client, req *http.Request) (answer, error) {
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return answer{}, err
	}
	if resp.StatusCode != http.StatusOK {
		return answer{}, fmt.Errorf("%s: %.100s", resp.Status, strings.TrimSpace(string(b)))
	}
	var a answer
	if err := json.Unmarshal(b, &a); err != nil {
		return answer{}, fmt.Errorf("cannot read the answer: %v", err)
	}
	return a, nil
}
