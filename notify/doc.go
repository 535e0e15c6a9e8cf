// Package notify tells people and their tools what happens in a cluster: by webhooks, e-mail and
// commands.
//
// # What is guaranteed
//
//   - Every member of a cluster observes it, so what happens is told as long as one of them lives and
//     reaches both the store and the channel.
//   - A notice is sent once per channel, by the member that has claimed it in the store. If that one
//     dies or fails meanwhile, another one sends it. Whoever dies between sending and noting it in the
//     store makes it come twice.
//   - What fails is retried with back-off for [GiveUp]. The queue of a channel is bounded.
//   - Nothing waits for this package, and it reads only copies of what the sidecar has seen, plus the
//     history and the list of members.
//   - Secrets (URLs, tokens, passwords) are read from their files for each notice, and are in no
//     error.
//
// # What is not guaranteed
//
// What came and went between two looks, or while nobody could read the store, is not told, except
// for reigns, which the history keeps. A notice may come late, and after one that happened later.
//
// # Usage
//
//	observer := notify.NewObserver("orders", "ctl-a")
//	outbox := notify.NewOutbox(notify.Config{Store: store, Member: "ctl-a", Channels: channels, Log: log})
//	go outbox.Run(ctx)
//	outbox.Tell(observer.Look(scene, time.Now())) // at every change
package notify
