package consul

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/tanist/tanist/backends/consul/consultest"
	"github.com/tanist/tanist/election"
)

// deployed returns a file of deploy/consul.
func deployed(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile("../../deploy/consul/" + name)
	must(t, err)
	return string(b)
}

// answer is the DNS answer for a name.
type answer struct {
	code  dnsmessage.RCode
	addrs []string // A: addresses; SRV: target:port
	ttls  []uint32
}

func (a answer) String() string {
	if len(a.addrs) == 0 {
		return strings.TrimPrefix(a.code.String(), "RCode")
	}
	return strings.Join(a.addrs, ",")
}

var queries atomic.Uint32

// dig asks one DNS server once, over UDP.
func dig(ctx context.Context, server, name string, kind dnsmessage.Type) (answer, error) {
	id := uint16(queries.Add(1))
	request := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name + "."), Type: kind, Class: dnsmessage.ClassINET}},
	}
	packet, err := request.Pack()
	if err != nil {
		return answer{}, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "udp", server)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	if end, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(end)
	}
	if _, err := conn.Write(packet); err != nil {
		return answer{}, err
	}
	buffer := make([]byte, 4096)
	n, err := conn.Read(buffer)
	if err != nil {
		return answer{}, err
	}
	var reply dnsmessage.Message
	if err := reply.Unpack(buffer[:n]); err != nil || reply.ID != id {
		return answer{}, fmt.Errorf("a reply that is not ours: %v", err)
	}
	a := answer{code: reply.RCode}
	for _, r := range reply.Answers {
		switch body := r.Body.(type) {
		case *dnsmessage.AResource:
			a.addrs = append(a.addrs, net.IP(body.A[:]).String())
		case *dnsmessage.SRVResource:
			a.addrs = append(a.addrs, fmt.Sprintf("%s:%d", body.Target, body.Port))
		default:
			a.addrs = append(a.addrs, r.Header.Type.String())
		}
		a.ttls = append(a.ttls, r.Header.TTL)
	}
	return a, nil
}

// ask is dig that must be answered.
func ask(t *testing.T, server, name string, kind dnsmessage.Type) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	a, err := dig(ctx, server, name, kind)
	must(t, err)
	return a
}

// answered waits until DNS answers want.
func answered(t *testing.T, server, name, want string) {
	t.Helper()
	var got answer
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if got = ask(t, server, name, dnsmessage.TypeA); got.String() == want {
			return
		}
	}
	t.Fatalf("%s is %s, want %s", name, got, want)
}

const none = "NameError"

func TestDNSAnswersWithTheActive(t *testing.T) {
	t.Parallel()
	c := consultest.Start(t, consultest.Options{Config: deployed(t, "agent.hcl")})
	server := c.Servers[0]
	config := Config{Cluster: "orders", Address: server.URL(), Log: logger(t), Service: &Service{Name: "shop", Tags: []string{"v2"}}}
	is := func(what, want string) {
		t.Helper()
		for _, name := range []string{"shop.service.consul", "active.shop.service.consul", "v2.shop.service.consul"} {
			got := ask(t, server.DNS(), name, dnsmessage.TypeA)
			if got.String() != want {
				t.Errorf("%s: %s is %s, want %s", what, name, got, want)
			}
			for _, ttl := range got.ttls {
				if ttl != 0 {
					t.Errorf("%s: the TTL is %d", what, ttl)
				}
			}
		}
	}
	publish := func(s *Store, lease election.LeaseID, a election.Active, state election.State, url string) {
		t.Helper()
		a.State, a.URL = state, url
		must(t, s.Publish(t.Context(), lease, a))
	}
	is("at first", none)
	a, first, recordA := holder(t, config, "ctl-a", 10*time.Minute)
	is("starting", none)
	publish(a, first, recordA, election.StateServing, "http://127.0.0.2:8081")
	is("serving", "127.0.0.2")
	srv := ask(t, server.DNS(), "shop.service.consul", dnsmessage.TypeSRV)
	if len(srv.addrs) != 1 || !strings.HasSuffix(srv.addrs[0], ":8081") {
		t.Errorf("SRV is %s, want one with port 8081", srv)
	}
	raw, err := c.Client(server)
	must(t, err)
	list, _, err := raw.Catalog().Service("shop", "active", nil)
	must(t, err)
	if len(list) != 1 || list[0].ServiceMeta["term"] != "1" || list[0].ServiceMeta["controller"] != "ctl-a" || list[0].ServiceMeta["role"] != "active" {
		t.Errorf("the catalog has %+v", list)
	}
	publish(a, first, recordA, election.StateStopping, "http://127.0.0.2:8081")
	is("stopping", none)
	publish(a, first, recordA, election.StateServing, "http://127.0.0.2:8081")

	// A takeover from a holder that has fallen silent.
	b, err := Open(config)
	must(t, err)
	defer b.Close()
	snap, err := b.Read(t.Context())
	must(t, err)
	second, err := b.Grant(t.Context(), 10*time.Minute)
	must(t, err)
	recordB := election.Active{Controller: "ctl-b", Term: 2, Incarnation: "ctl-b-1"}
	claim := claimOf(snap, second, recordB)
	claim.Silent = snap.Beat
	must(t, b.Claim(t.Context(), claim))
	is("claimed by silence", none)
	recordA.State = election.StateServing
	if err := a.Publish(t.Context(), first, recordA); !errors.Is(err, election.ErrLost) {
		t.Errorf("publication of a former holder: %v", err)
	}
	is("after the old holder's attempt", none)
	publish(b, second, recordB, election.StateServing, "http://127.0.0.3:8082")
	is("serving again", "127.0.0.3")
	must(t, b.Release(t.Context(), election.Release{Lease: second, Breadcrumb: election.Breadcrumb{Term: 2, Controller: "ctl-b", Clean: true}}))
	is("released", none)

	for _, bad := range []string{"", "nothing", "tcp://127.0.0.1", "http://127.0.0.1:99999"} {
		if _, _, err := hostPort(bad); err == nil {
			t.Errorf("%q was taken for an address", bad)
		}
	}
}

// TestAnnouncerRepairs: what no transaction of a reign could do, and nothing that is not ours.
func TestAnnouncerRepairs(t *testing.T) {
	t.Parallel()
	c := consultest.Start(t, consultest.Options{Clients: 1, Config: deployed(t, "agent.hcl")})
	host, server := c.Clients[0], c.Servers[0]
	raw, err := c.Client(server)
	must(t, err)
	own, err := c.Client(host)
	must(t, err)
	// Others have services too: one of the same name on the host's own agent would be a second
	// answer, so another name.
	must(t, own.Agent().ServiceRegister(&api.AgentServiceRegistration{ID: "shop", Name: "other", Port: 1}))
	_, err = raw.Catalog().Register(&api.CatalogRegistration{
		Node: "tanist-orders", Address: "127.0.0.1", Service: &api.AgentService{ID: "theirs", Service: "theirs", Port: 2},
	}, nil)
	must(t, err)

	config := Config{Cluster: "orders", Address: host.URL(), Log: logger(t), Service: &Service{Name: "shop", Connect: true}}
	a, lease, record := holder(t, config, "ctl-a", 10*time.Minute)
	other, err := Open(config) // a passive, which runs an announcer too
	must(t, err)
	defer other.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	for _, s := range []*Store{a, other} {
		running.Go(func() { _ = s.Announcer().Run(ctx) })
	}
	record.State, record.URL = election.StateServing, "http://127.0.0.2:8081"
	must(t, a.Publish(t.Context(), lease, record))
	answered(t, server.DNS(), "shop.service.consul", "127.0.0.2")

	// The agent of the host crashes and comes back.
	must(t, host.Kill())
	answered(t, server.DNS(), "shop.service.consul", "127.0.0.2")
	must(t, host.Start())
	must(t, c.Wait(t.Context()))
	must(t, renewed(t.Context(), a, lease, true))
	answered(t, server.DNS(), "shop.service.consul", "127.0.0.2")

	// Somebody removes the registration.
	for _, id := range []string{"shop", "shop-sidecar-proxy"} {
		_, err = raw.Catalog().Deregister(&api.CatalogDeregistration{Node: "tanist-orders", ServiceID: id}, nil)
		must(t, err)
	}
	must(t, renewed(t.Context(), a, lease, true)) // a beat is a hint to look
	answered(t, server.DNS(), "shop.service.consul", "127.0.0.2")

	// The session ends and nobody takes over.
	_, err = raw.Session().Destroy(string(lease), nil)
	must(t, err)
	answered(t, server.DNS(), "shop.service.consul", none)

	list, _, err := raw.Catalog().NodeServiceList("tanist-orders", nil)
	must(t, err)
	if len(list.Services) != 1 || list.Services[0].ID != "theirs" {
		t.Errorf("on the catalog entry is left %+v, want theirs alone", list.Services)
	}
	if s, _, err := own.Agent().Service("shop", nil); err != nil || s.Service != "other" {
		t.Errorf("the service of somebody else: %+v, %v", s, err)
	}
}

// TestNeverTwoAnswers asks the DNS of three agents every 5 ms during takeovers of every kind.
func TestNeverTwoAnswers(t *testing.T) {
	t.Parallel()
	takeovers := 50
	if testing.Short() {
		takeovers = 10
	}
	c := locked(t, consultest.Options{Servers: 3, Config: quickTTL})
	config := Config{
		Cluster: "orders", Token: granted(t, c, "policy-controller.hcl", "orders"), TLS: election.TrustFiles{CAFile: c.CAFile},
		MinTTL: time.Second, Log: logger(t), Service: &Service{Name: "orders"},
	}
	var hosts [2]*Store
	for i := range hosts {
		config.Address = c.Servers[i].URL()
		s, err := Open(config)
		must(t, err)
		defer s.Close()
		hosts[i] = s
	}
	address := func(term election.Term) string { return fmt.Sprintf("127.1.%d.%d", term/250, term%250+1) }

	var served atomic.Uint64 // the term whose publication was acknowledged
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var asking sync.WaitGroup
	var asked, empty atomic.Int64
	for _, server := range c.Servers {
		asking.Go(func() {
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				<-tick.C
				least := served.Load() // before the question is sent
				attempt, done := context.WithTimeout(ctx, 5*time.Second)
				got, err := dig(attempt, server.DNS(), "orders.service.consul", dnsmessage.TypeA)
				done()
				if ctx.Err() != nil || err != nil {
					continue // no answer is no wrong answer; they are counted
				}
				asked.Add(1)
				switch len(got.addrs) {
				case 0:
					empty.Add(1)
				case 1:
					var hi, lo uint64
					_, _ = fmt.Sscanf(got.addrs[0], "127.1.%d.%d", &hi, &lo)
					if term := hi*250 + lo - 1; term < least {
						t.Errorf("%s answered with term %d after term %d served", server.Name, term, least)
					}
				default:
					t.Errorf("%s gave two answers: %s", server.Name, got)
				}
			}
		})
	}
	var lease election.LeaseID
	for i := range takeovers {
		s, before := hosts[i%2], hosts[(i+1)%2]
		snap, err := s.Read(t.Context())
		must(t, err)
		silent := election.Version(0)
		if i > 0 {
			switch i % 3 {
			case 0: // released
				must(t, before.Release(t.Context(), election.Release{Lease: lease, Breadcrumb: snap.Breadcrumb}))
			case 1: // silent
				silent = snap.Beat
			case 2: // the session ended
				must(t, before.destroy(t.Context(), lease))
			}
			if silent == 0 {
				snap, err = s.Read(t.Context())
				must(t, err)
			}
		}
		lease, err = s.Grant(t.Context(), 10*time.Minute)
		must(t, err)
		a := election.Active{Controller: fmt.Sprintf("ctl-%d", i%2), Term: snap.Breadcrumb.Term + 1, Incarnation: "1", State: election.StateStarting}
		claim := claimOf(snap, lease, a)
		claim.Silent = silent
		must(t, s.Claim(t.Context(), claim))
		a.State, a.URL = election.StateServing, "http://"+address(a.Term)+":80"
		must(t, s.Publish(t.Context(), lease, a))
		served.Store(uint64(a.Term))
		for _, server := range c.Servers {
			answered(t, server.DNS(), "orders.service.consul", address(a.Term))
		}
		time.Sleep(20 * time.Millisecond) // some questions in between
	}
	cancel()
	asking.Wait()
	t.Logf("%d takeovers, %d answers of DNS (%d of them: nobody)", takeovers, asked.Load(), empty.Load())
	if asked.Load() < int64(takeovers) {
		t.Errorf("only %d answers", asked.Load())
	}
}

// TestServiceRegistration: what is registered is what DNS and the mesh need.
func TestServiceRegistration(t *testing.T) {
	s, err := Open(Config{Cluster: "orders", Service: &Service{Name: "shop", Connect: true, Tags: []string{"v2"}}})
	must(t, err)
	defer s.Close()
	record := election.Active{Controller: "ctl-a", Term: 7, State: election.StateServing, URL: "https://10.0.0.11", URLs: `{"pb":"http://10.0.0.11:9989"}`}
	list, err := s.services(record)
	must(t, err)
	if list[0].Meta["url-pb"] != "http://10.0.0.11:9989" || list[1].Meta["url-pb"] != "http://10.0.0.11:9989" {
		t.Errorf("the metadata is %v", list[0].Meta)
	}
	record.URLs = `{"pb":"http://10.0.0.66:9989"}`
	if _, err := s.services(record); err == nil {
		t.Error("a URL of another host is announced")
	}
	if len(list) != 2 || list[0].Port != 443 || list[0].Address != "10.0.0.11" || !slices.Equal(list[0].Tags, []string{"active", "v2"}) || list[0].Meta["term"] != "7" {
		t.Errorf("%+v", list)
	}
	proxy := list[1]
	if proxy.Kind != api.ServiceKindConnectProxy || proxy.Port != defaultProxyPort || proxy.Proxy.DestinationServiceName != "shop" || proxy.Proxy.LocalServicePort != 443 {
		t.Errorf("%+v %+v", proxy, proxy.Proxy)
	}
}
