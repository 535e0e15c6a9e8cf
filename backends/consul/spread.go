package consul

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"time"

	"github.com/tanist/tanist/election"
)

// spread sends requests to the first of several addresses that responds, by [election.Hedge]. An
// address that does not respond moves to the end for a while.
type spread struct {
	next  http.RoundTripper
	hosts []string // host:port, in order of preference
	hedge election.Hedge
}

const avoidFor = 5 * time.Second

type repeatableKey struct{}

// repeatable marks the requests of a context that are idempotent.
func repeatable(ctx context.Context) context.Context {
	return context.WithValue(ctx, repeatableKey{}, true)
}

func (s *spread) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		defer r.Body.Close()
	}
	again := r.Method == http.MethodGet || r.Context().Value(repeatableKey{}) != nil
	response, err := election.FirstAnswer(r.Context(), &s.hedge, election.Question[*http.Response]{ //nolint:bodyclose // the caller does
		Repeatable: again,
		Patient:    r.URL.Query().Get("index") != "", // a blocking query
		Ask: func(ctx context.Context, host int, sent func()) (*http.Response, error) {
			response, err := s.send(ctx, r, host, sent)
			if err == nil && again && response.StatusCode >= http.StatusInternalServerError {
				err = fmt.Errorf("%s answers %s", s.hosts[host], response.Status)
			}
			return response, err
		},
		Drop: func(response *http.Response) {
			if response != nil {
				response.Body.Close()
			}
		},
	})
	if response != nil {
		return response, nil // no host had a better response
	}
	return nil, err
}

// send makes one attempt. The response can be read after the attempt ends, until the context of r
// ends.
func (s *spread) send(attempt context.Context, r *http.Request, host int, sent func()) (*http.Response, error) {
	ctx, cancel := context.WithCancel(r.Context())
	stop := context.AfterFunc(attempt, cancel)
	// A request is written only once there is a connection.
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent() }}
	copied := r.Clone(httptrace.WithClientTrace(ctx, trace))
	copied.URL.Host, copied.Host = s.hosts[host], s.hosts[host]
	if r.GetBody != nil {
		body, err := r.GetBody()
		if err != nil {
			cancel()
			return nil, err
		}
		copied.Body = body
	}
	response, err := s.next.RoundTrip(copied)
	if !stop() && err == nil {
		response.Body.Close()
		err = attempt.Err()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	response.Body = &finishing{response.Body, cancel}
	return response, nil
}

// finishing ends the context of a request once its response has been read.
type finishing struct {
	io.ReadCloser
	done context.CancelFunc
}

func (f *finishing) Close() error {
	defer f.done()
	return f.ReadCloser.Close()
}
