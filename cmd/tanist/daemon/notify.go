package daemon

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/api"
	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/notify"
	"github.com/tanist/tanist/operate"
	"github.com/tanist/tanist/sidecar"
)

// Channels returns the channels of a controller's file that tell people what happens. An error begins
// with the key.
func Channels(c *config.Controller) ([]notify.Channel, error) {
	var all []notify.Channel
	for i, n := range c.Notify {
		channel := notify.Channel{Name: n.Name, Events: n.Events, Timeout: n.Timeout}
		var err error
		switch n.Kind {
		case "email":
			m := &notify.Mail{Server: n.Server, From: n.From, To: n.To, Username: n.Username, PasswordFile: n.PasswordFile, TLS: n.TLS, CAFile: n.CAFile}
			channel.Send, err = m.Send, m.Check()
		case "command":
			channel.Send = commandChannel(n.Command, starter{c.Run.EnvFrom, c.Run.NoNewPrivs})
		default:
			w := &notify.Web{
				Form: notify.Form(n.Kind), URL: n.URL, URLFile: n.URLFile, TokenFile: n.TokenFile, Headers: n.Headers, Template: n.Template, CAFile: n.CAFile,
			}
			channel.Send, err = w.Send, w.Check()
		}
		if err != nil {
			return nil, fmt.Errorf("notify[%d].%v", i, err)
		}
		all = append(all, channel)
	}
	return all, nil
}

// commandChannel runs a command for each notice, as a hook is run.
func commandChannel(command []string, with starter) func(context.Context, notify.Notice) error {
	return func(ctx context.Context, n notify.Notice) error {
		env := []string{
			"TANIST_ID=" + n.ID, "TANIST_EVENT=" + n.Event, "TANIST_SEVERITY=" + string(n.Severity), "TANIST_CLUSTER=" + n.Cluster, "TANIST_NAME=" + n.Name,
			"TANIST_TERM=" + strconv.FormatUint(uint64(n.Term), 10), "TANIST_TEXT=" + n.Text, "TANIST_AT=" + n.At.Format(time.RFC3339Nano),
			"TANIST_RESOLVED=" + strconv.FormatBool(n.Resolved),
		}
		return runHook(ctx, command, env, with)
	}
}

// notifier tells people what happens in the cluster, as its sidecar sees it.
type notifier struct {
	store    Store
	view     func() sidecar.View
	observer *notify.Observer
	outbox   *notify.Outbox
	log      zerolog.Logger

	scene   notify.Scene
	reign   election.Active // when the history was read last
	history time.Time       // when to read the history again
	members time.Time       // when to read the members again
}

const (
	notifyEvery  = 500 * time.Millisecond // copies of what the sidecar has seen are compared
	historyEvery = 30 * time.Second
)

// newNotifier returns nil if there are no channels.
func (p *sidecarProcess) newNotifier(view func() sidecar.View) (*notifier, error) {
	channels, err := Channels(p.cfg)
	if err != nil || len(channels) == 0 {
		return nil, err
	}
	return &notifier{
		store: p.backend, view: view, log: p.log,
		observer: notify.NewObserver(p.cfg.Cluster, p.cfg.Name),
		outbox:   notify.NewOutbox(notify.Config{Store: p.backend, Member: p.cfg.Name, Channels: channels, Log: p.log}),
	}, nil
}

// run observes and sends until ctx ends.
func (n *notifier) run(ctx context.Context) {
	if n == nil {
		return
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		n.outbox.Run(ctx)
	}()
	defer func() { <-sent }()
	tick := time.NewTicker(notifyEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if v := n.view(); v.Ticked != 0 && n.look(ctx, v) {
			n.outbox.Tell(n.observer.Look(n.scene, time.Now()))
		}
	}
}

// look updates the scene, and reports whether all of it is of the same time.
func (n *notifier) look(ctx context.Context, v sidecar.View) bool {
	n.scene.Away = v.Store != nil
	if n.scene.Away {
		return true
	}
	n.scene.Snap = v.Snapshot
	now, reign := time.Now(), election.Active{}
	if v.Snapshot.Active != nil {
		reign = *v.Snapshot.Active
	}
	ctx, cancel := context.WithTimeout(ctx, StoreTimeout)
	defer cancel()
	if reign != n.reign || now.After(n.history) {
		all, err := operate.ReadHistory(ctx, n.store)
		if err != nil {
			return false
		}
		n.scene.History, n.reign, n.history = all, reign, now.Add(historyEvery)
		// The history of a reign that serves is written a moment later.
		if reign.Serving() && (len(all) == 0 || all[0].Term < reign.Term) {
			n.history = now
		}
	}
	if now.After(n.members) {
		entries, err := n.store.List(ctx, election.MemberPrefix)
		if err != nil {
			return false
		}
		n.scene.Members = n.scene.Members[:0]
		for _, e := range entries {
			if m, err := election.DecodeMember(e.Value); err == nil {
				n.scene.Members = append(n.scene.Members, m)
			}
		}
		n.members = now.Add(2 * membersEvery)
	}
	return true
}

// samples returns the metrics of the notices.
func (n *notifier) samples() []api.Sample {
	if n == nil {
		return nil
	}
	var all []api.Sample
	for channel, c := range n.outbox.Counts() {
		for result, count := range map[string]uint64{"sent": c.Sent, "failed": c.Failed, "dropped": c.Dropped} {
			all = append(all, api.Sample{
				Name: "tanist_notices_total", Help: "Notices of this sidecar, by channel and what became of them.", Counter: true,
				Labels: map[string]string{"channel": channel, "result": result}, Value: float64(count),
			})
		}
	}
	return all
}
