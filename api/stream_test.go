package api

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

// pipes is a listener in memory, which fake time can run with.
type pipes struct {
	conns chan net.Conn
	over  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.over:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	close(p.over)
	return nil
}

func (*pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// follow asks a server for /v1/events, and returns the status and the lines that follow.
func (p *pipes) follow(t *testing.T) (status int, lines <-chan string, leave func()) {
	t.Helper()
	ours, theirs := net.Pipe()
	p.conns <- theirs
	if _, err := fmt.Fprint(ours, "GET /v1/events HTTP/1.1\r\nHost: here\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(ours), nil)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1000)
	go func() {
		defer close(got)
		defer resp.Body.Close()
		for read := bufio.NewReader(resp.Body); ; {
			line, err := read.ReadString('\n')
			if err != nil {
				return
			}
			got <- strings.TrimSuffix(line, "\n")
		}
	}()
	return resp.StatusCode, got, func() { _ = ours.Close() }
}

// streaming runs a server with one stream.
func streaming(t *testing.T, stream Stream) (p *pipes, end func()) {
	t.Helper()
	p = &pipes{conns: make(chan net.Conn), over: make(chan struct{})}
	s := New(Config{Open: true, Streams: map[string]Stream{"/v1/events": stream}, Log: zerolog.Nop()})
	s.web = append(s.web, p)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); s.Run(ctx) }()
	return p, func() { cancel(); <-ended }
}

// TestStreamOutlivesTheTimeouts: a stream lasts longer than a request may, shows every quarter of a
// minute that it lives, and ends with the server at once.
func TestStreamOutlivesTheTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events := make(chan Event, 1)
		p, end := streaming(t, func(context.Context) <-chan Event { return events })
		status, lines, leave := p.follow(t)
		defer leave()
		if status != http.StatusOK {
			t.Fatalf("it answered %d", status)
		}
		time.Sleep(10*time.Minute + time.Second)
		events <- Event{Kind: "ready\ndata: forged", Data: map[string]string{"text": "two\nlines"}}
		synctest.Wait()
		alive, rest := 0, []string{}
		for len(lines) > 0 {
			if line := <-lines; line == ":" {
				alive++
			} else if line != "" && !strings.HasPrefix(line, ": ") {
				rest = append(rest, line)
			}
		}
		if alive != 40 {
			t.Errorf("%d signs of life in ten minutes, want 40", alive)
		}
		if got := strings.Join(rest, "\n"); got != "event: ready-data--forged\ndata: {\"text\":\"two\\nlines\"}" {
			t.Errorf("got %q", got)
		}
		began := time.Now()
		end()
		if took := time.Since(began); took > shutdownTimeout/2 {
			t.Errorf("the end of the server took %v", took)
		}
	})
}

// TestStreamEndsForTheSlow: a client whose events are dropped, and one that reads nothing, are
// disconnected. Whoever leaves frees its place, and there is a limit to places.
func TestStreamEndsForTheSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := make(chan chan Event, streamsAtOnce)
		p, end := streaming(t, func(context.Context) <-chan Event {
			events := make(chan Event)
			began <- events
			return events
		})
		defer end()
		_, lines, leave := p.follow(t)
		close(<-began)
		for range lines { // until the server has ended it
		}
		leave()

		ours, theirs := net.Pipe()
		p.conns <- theirs
		if _, err := io.WriteString(ours, "GET /v1/events HTTP/1.1\r\nHost: here\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(streamWrite + time.Second)
		if _, err := io.ReadAll(ours); err != nil {
			t.Errorf("a connection of which nothing is read: %v", err)
		}
		for len(began) > 0 {
			<-began
		}

		for range streamsAtOnce {
			_, _, leave := p.follow(t)
			defer leave()
		}
		synctest.Wait()
		status, _, leave := p.follow(t)
		leave()
		if status != http.StatusServiceUnavailable {
			t.Errorf("one too many: %d", status)
		}
	})
}
