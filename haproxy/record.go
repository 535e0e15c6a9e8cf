package haproxy

import (
	"fmt"
	"net/netip"
	"strconv"

	"github.com/tanist/tanist/election"
)

// nowhere is the address of a slot that was never used: it is reserved for documentation and never
// routed, and the slot is in maintenance.
var nowhere = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), 1)

// carries returns why this proxy can't route to a target that may otherwise be followed, or nil.
func (c Cluster) carries(t election.Target, whole Config) error {
	if c.tlsMismatch(t.At, whole) {
		return fmt.Errorf("url: %.100q is https, which mode http of the built-in template can't carry: use mode tcp", t.URL)
	}
	return nil
}

// tlsMismatch: in mode http the built-in template speaks plain HTTP to the controllers.
func (c Cluster) tlsMismatch(u election.URL, whole Config) bool {
	return u.Scheme == "https" && c.Mode == ModeHTTP && whole.ConfigFile != "" && whole.Template == ""
}

// filter returns the filter for the records of c. [Cluster.complete] has checked Controllers.
func (c Cluster) filter() *election.Filter {
	controllers, _ := election.ParseControllers(c.Controllers)
	return election.NewFilter(controllers)
}

// slots returns the backend's servers as the file lists them before anything is known.
func (c Cluster) slots() []slot {
	if len(c.Controllers) == 0 {
		s := make([]slot, c.Slots)
		for i := range s {
			s[i] = slot{name: "c" + strconv.Itoa(i+1), host: nowhere.Addr().String(), port: nowhere.Port()}
		}
		return s
	}
	s := make([]slot, 0, len(c.Controllers))
	for _, raw := range c.Controllers {
		u, err := election.ParseURL(raw)
		if err != nil {
			continue // complete refused it
		}
		s = append(s, slot{name: serverName(u), host: u.Host, port: u.Port})
	}
	return s
}

// serverName derives a server name that is legal in HAProxy and readable in statistics and logs:
// "10.0.0.11:8080".
func serverName(u election.URL) string { return u.Host + ":" + strconv.Itoa(int(u.Port)) }
