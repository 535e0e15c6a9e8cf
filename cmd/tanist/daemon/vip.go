package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"sync"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/api"
	"github.com/tanist/tanist/cmd/tanist/config"
	"github.com/tanist/tanist/cmd/tanist/exit"
	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/process"
	"github.com/tanist/tanist/sidecar"
	"github.com/tanist/tanist/vip"
)

// vipKeeper is the hidden subcommand of the keeper of virtual IPs.
const vipKeeper = "vip-keeper"

// VIPKeeperMain runs the keeper of virtual IPs. It returns the exit code.
func VIPKeeperMain() int {
	process.ShedText() // it runs on every host, and mostly idles
	return vip.Keep()
}

// virtualIPCheck names the extra health check of a sidecar with virtual IPs.
const virtualIPCheck = "virtual_ip"

// addressesOf returns the virtual IPs of a controller. Errors begin with the key.
func addressesOf(c *config.Controller) ([]vip.Address, error) {
	all, err := parseAddresses(c.VirtualIP)
	if u, errURL := url.Parse(c.Run.URL); errURL == nil {
		err = errors.Join(err, ownURL("run.url", u, all))
	}
	return all, err
}

// parseAddresses reads a list of virtual IPs. Errors begin with the key.
func parseAddresses(list []config.VirtualIP) ([]vip.Address, error) {
	var all []vip.Address
	var errs []error
	for i, v := range list {
		if err := vip.CheckInterface(v.Interface); err != nil {
			errs = append(errs, fmt.Errorf("virtual_ip[%d].interface: %v", i, err))
			continue
		}
		a, err := vip.NewAddress(v.Address, v.Interface)
		if err != nil {
			errs = append(errs, fmt.Errorf("virtual_ip[%d].address: %v", i, err))
			continue
		}
		all = append(all, a)
	}
	if i := vip.Duplicate(all); i >= 0 && len(errs) == 0 {
		errs = append(errs, fmt.Errorf("virtual_ip[%d].address: %s is listed twice", i, all[i].Prefix.Addr()))
	}
	return all, errors.Join(errs...)
}

// ownURL refuses a URL at a virtual IP: its port is dialed before the address exists.
func ownURL(key string, u *url.URL, all []vip.Address) error {
	host, err := netip.ParseAddr(u.Hostname())
	if err != nil {
		return nil //nolint:nilerr // a name, which may resolve to anything
	}
	for _, a := range all {
		if a.Prefix.Addr() == host {
			return fmt.Errorf("%s: %s is a virtual IP, which is not here until the controller serves: use this host's own address", key, host)
		}
	}
	return nil
}

// addressBook holds what a sidecar and its displays need of the virtual IPs.
type addressBook struct {
	holder *vip.Holder

	mu   sync.Mutex
	show func([]election.VirtualIP)
	last map[vip.Address]vip.State
	log  zerolog.Logger
}

// holdAddresses starts the keeper of virtual IPs, or returns nil if there are none. state is the
// directory where a later process finds the keeper; empty: nowhere.
func holdAddresses(ctx context.Context, all []vip.Address, state string, log zerolog.Logger) (*addressBook, error) {
	if len(all) == 0 {
		return nil, nil
	}
	if err := vip.Permitted(); err != nil {
		return nil, exit.Errorf(exit.Denied, "%v", err)
	}
	b := &addressBook{last: map[vip.Address]vip.State{}, log: log}
	cfg := vip.Config{Addresses: all, Args: []string{vipKeeper}, Changed: b.changed, Log: log}
	if state != "" {
		if err := os.MkdirAll(state, 0o700); err != nil {
			return nil, exit.Errorf(exit.Failure, "state_dir: %v", err)
		}
		cfg.Socket = filepath.Join(state, "vip.sock")
	}
	holder, err := vip.Start(ctx, cfg)
	if errors.Is(err, vip.ErrHeld) {
		return nil, exit.Errorf(exit.Config, "%v", err)
	}
	if err != nil {
		return nil, exit.Errorf(exit.Failure, "%v", err)
	}
	b.mu.Lock()
	b.holder = holder
	b.mu.Unlock()
	return b, nil
}

// changed publishes the state of the addresses.
func (b *addressBook) changed(all []vip.Status) {
	b.mu.Lock()
	show := b.show
	for _, s := range all {
		if was, known := b.last[s.Address]; known && was == s.State || !known && s.State == vip.StateAbsent {
			b.last[s.Address] = s.State
			continue
		}
		b.last[s.Address] = s.State
		level := zerolog.InfoLevel
		if s.State != vip.StateHeld && s.State != vip.StateAbsent {
			level = zerolog.WarnLevel
		}
		b.log.WithLevel(level).Str("address", s.Prefix.String()).Str("interface", s.Interface).Str("reason", s.Why).Msg("virtual IP " + string(s.State))
	}
	b.mu.Unlock()
	if show != nil {
		show(shownAddresses(all))
	}
}

// showTo passes the current state and every later one to show, which puts them into a status in the
// store.
func (b *addressBook) showTo(show func([]election.VirtualIP)) {
	if b == nil {
		return
	}
	b.mu.Lock()
	b.show = show
	b.mu.Unlock()
	show(shownAddresses(b.holder.Statuses()))
}

func shownAddresses(all []vip.Status) []election.VirtualIP {
	shown := make([]election.VirtualIP, 0, len(all))
	for _, s := range all {
		shown = append(shown, election.VirtualIP{Address: s.Prefix.String(), Interface: s.Interface, State: string(s.State), Why: s.Why})
	}
	return shown
}

// door returns the addresses as the door of a sidecar, or nil if there are none.
func (b *addressBook) door() sidecar.Door {
	if b == nil {
		return nil
	}
	return addressDoor{b.holder}
}

// close detaches the keeper. It keeps what it holds until the deadline.
func (b *addressBook) close() error {
	if b != nil {
		b.holder.Close()
	}
	return nil
}

// preFlight adds to a fitness check what would prevent taking an address.
func (b *addressBook) preFlight(others func(context.Context) error) func(context.Context) error {
	if b == nil {
		return others
	}
	return func(ctx context.Context) error {
		err := b.holder.Wrong()
		if err != nil {
			err = fmt.Errorf("cannot use the virtual IP: %v", err)
		}
		if others != nil {
			err = errors.Join(others(ctx), err)
		}
		return err
	}
}

// addressDoor adapts the holder of virtual IPs to the sidecar's interface.
type addressDoor struct{ holder *vip.Holder }

func (d addressDoor) Prepare() { d.holder.Look() }

func (d addressDoor) Open(ctx context.Context, term election.Term, deadline election.Instant) error {
	return d.holder.Hold(ctx, term, deadline)
}

func (d addressDoor) Extend(deadline election.Instant) { d.holder.Extend(deadline) }

func (d addressDoor) Shut(ctx context.Context) error { return d.holder.Release(ctx) }

// samples returns the metrics of the virtual IPs.
func (b *addressBook) samples() []api.Sample {
	if b == nil {
		return nil
	}
	var all []api.Sample
	for _, s := range b.holder.Statuses() {
		labels := func(more ...string) map[string]string {
			m := map[string]string{"address": s.Prefix.Addr().String(), "interface": s.Interface}
			for i := 0; i+1 < len(more); i += 2 {
				m[more[i]] = more[i+1]
			}
			return m
		}
		for _, state := range []vip.State{vip.StateAbsent, vip.StateHeld, vip.StateContested, vip.StateForeign, vip.StateFailed} {
			value := 0.0
			if s.State == state {
				value = 1
			}
			all = append(all, api.Sample{
				Name: "tanist_virtual_ip_state", Help: "The state of a virtual IP on this host, as a set of states.",
				Labels: labels("state", string(state)), Value: value,
			})
		}
		for _, c := range []struct {
			name, help string
			n          uint64
		}{
			{"tanist_virtual_ip_announcements_total", "Announcements of a virtual IP (gratuitous ARP, unsolicited neighbor advertisements).", s.Announced},
			{"tanist_virtual_ip_conflicts_total", "Answers of other hosts for a virtual IP that this host holds.", s.Conflicts},
			{"tanist_virtual_ip_restorations_total", "Additions of a virtual IP after something else had removed it.", s.Restored},
		} {
			all = append(all, api.Sample{Name: c.name, Help: c.help, Counter: true, Labels: labels(), Value: float64(c.n)})
		}
	}
	return all
}
