package main

import (
	"context"
	"sync"

	"github.com/tanist/tanist/api"
	"github.com/tanist/tanist/cmd/tanist/daemon"
)

// eventsBehind is how many events a client of the stream may be behind.
const eventsBehind = 256

// broadcast sends the events of a cluster to any number of clients. One follower reads the store for
// all of them, and only while there are any.
type broadcast struct {
	store daemon.Store

	mu      sync.Mutex
	clients map[chan api.Event]bool
	present scene // as last seen, while following
	away    bool  // the store could not be read last
	stop    func()
}

// eventStream returns the stream of a cluster's events, which `tanist events -f` shows, too. A
// client first gets the present state, and each change after that.
func eventStream(ctx context.Context, s daemon.Store) api.Stream {
	b := &broadcast{store: s, clients: map[chan api.Event]bool{}}
	return func(client context.Context) <-chan api.Event {
		events := make(chan api.Event, eventsBehind)
		b.mu.Lock()
		defer b.mu.Unlock()
		b.clients[events] = true
		context.AfterFunc(client, func() { b.leave(events) })
		if b.stop == nil {
			following, stop := context.WithCancel(ctx)
			b.stop, b.present, b.away = stop, scene{}, false
			go b.follow(following)
			return events
		}
		present := changes(scene{}, b.present)
		if b.away {
			present = append(present, event{Event: "store-away", Text: "cannot read the store; this is its last known state"})
		}
		b.send(events, dated(present))
		return events
	}
}

// follow sends what happens until ctx ends.
func (b *broadcast) follow(ctx context.Context) {
	f := follower{store: b.store, hints: b.store.Watch(ctx)}
	for {
		happened := f.look(ctx)
		b.mu.Lock()
		if ctx.Err() != nil {
			b.mu.Unlock()
			return // another may follow for others by now
		}
		b.present, b.away = f.last, f.away
		for client := range b.clients {
			b.send(client, happened)
		}
		b.mu.Unlock()
		f.wait(ctx)
	}
}

// send sends events to a client. One that is too far behind is sent no more: its channel is closed.
// The caller has the lock.
func (b *broadcast) send(client chan api.Event, events []event) {
	for _, e := range events {
		select {
		case client <- api.Event{Kind: e.Event, Data: e}:
		default:
			b.drop(client)
			return
		}
	}
}

func (b *broadcast) leave(client chan api.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop(client)
}

// drop ends a client's events, and the following with the last client. The caller has the lock.
func (b *broadcast) drop(client chan api.Event) {
	if !b.clients[client] {
		return
	}
	delete(b.clients, client)
	close(client)
	if len(b.clients) == 0 {
		b.stop()
		b.stop = nil
	}
}
