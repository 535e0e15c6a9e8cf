package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Event is one event of a stream: its kind, one word, and a document.
type Event struct {
	Kind string
	Data any
}

// Stream begins to send events to the channel that it returns, for as long as ctx lasts. It closes
// the channel when it sends no more, also to a client that was too slow; the client may then ask
// again. The channel is received from until it is closed or ctx has ended.
type Stream func(ctx context.Context) <-chan Event

const (
	// streamsAtOnce leaves most of the server's connections to short requests.
	streamsAtOnce = 64
	// streamAlive is how often a silent stream shows that it lives. Proxies cut connections that are
	// silent for a minute.
	streamAlive = 15 * time.Second
	// streamWrite bounds the time a client takes to accept an event.
	streamWrite = 10 * time.Second
)

// streamHandler sends a stream as server-sent events.
func (s *Server) streamHandler(stream Stream, places chan struct{}) http.Handler {
	return reading(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
		default:
			w.Header().Set("Retry-After", "10")
			Problem(w, http.StatusServiceUnavailable, fmt.Sprintf("%d clients follow already: ask again", cap(places)))
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Accel-Buffering", "no") // nginx would hold the events back
		if r.Method == http.MethodHead {
			return
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		control := http.NewResponseController(w)
		send := func(text []byte) bool {
			// The server's own time-out is meant for answers that have an end.
			if control.SetWriteDeadline(time.Now().Add(streamWrite)) != nil {
				return false
			}
			_, err := w.Write(text)
			return err == nil && control.Flush() == nil
		}
		alive := time.NewTicker(streamAlive)
		defer alive.Stop()
		events := stream(ctx)
		for more := send([]byte(": the present state, and then every change\n\n")); more; {
			select {
			case <-ctx.Done():
				return
			case <-s.ending:
				return
			case <-alive.C:
				more = send([]byte(":\n\n"))
			case e, ok := <-events:
				more = ok && send(e.encode())
			}
		}
	}))
}

// encode returns e as a server-sent event. Its document has no line feed, because it is JSON.
func (e Event) encode() []byte {
	body, err := json.Marshal(e.Data)
	if err != nil {
		body = []byte("null")
	}
	kind := strings.Map(func(r rune) rune {
		if r == '-' || 'a' <= r && r <= 'z' || '0' <= r && r <= '9' {
			return r
		}
		return '-' // a store's content must not begin another field
	}, e.Kind)
	var b bytes.Buffer
	fmt.Fprintf(&b, "event: %s\ndata: %s\n\n", kind, body)
	return b.Bytes()
}
