package sidecar

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/election"
)

var (
	scheduleSeed = flag.Uint64("schedule.seed", 0, "run only the random schedule of this seed, and show its log")
	schedules    = flag.Int("schedule.count", 0, "how many random schedules to run; 0: some, more with TANIST_LONG=1")
)

// site is one host: what outlives the processes of its sidecar.
type site struct {
	*world
	name    string
	program *lasting
	health  *switchboard
	memory  *notes
	mu      sync.Mutex
	known   election.Known
	before  string // incarnation of the last process
	now     *host
}

func (w *world) site(name string) *site {
	s := &site{world: w, name: name, memory: &notes{}}
	first := w.add(name)
	w.hosts = w.hosts[:len(w.hosts)-1]
	s.program, s.health = &lasting{program: first.program}, first.health
	return s
}

// boot starts a process of the sidecar.
func (s *site) boot(options ...func(*Config)) {
	s.mu.Lock()
	known := s.known
	s.mu.Unlock()
	s.now = s.add(s.name, append([]func(*Config){func(c *Config) {
		c.Controller, c.Port, c.Health, c.Memory = s.program, s.program.port, s.health, s.memory
		c.Resume, c.Known, c.Predecessor = s.memory.get(), known, s.before
		c.Remember = func(k election.Known) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.known = k
		}
		s.before = c.Incarnation
	}}, options...)...)
	s.now.start()
}

func (s *site) lives() bool { return s.now != nil && s.now.lives() }

// end waits for a process that was told to end. It thaws a frozen one.
func (s *site) end() {
	s.now.gate.thaw()
	if err := <-s.now.done; err != nil {
		s.t.Errorf("%s: %v", s.name, err)
	}
	s.now.end = nil
}

// schedule is one random run. One seed determines what happens when.
type schedule struct {
	*world
	*rand.Rand
	sites   []*site
	policy  election.StoreLoss
	peers   *peers
	timings []election.Timing
	log     []string
}

func (s *schedule) note(format string, args ...any) {
	s.log = append(s.log, fmt.Sprintf("%8v ", time.Since(s.base).Round(time.Millisecond))+fmt.Sprintf(format, args...))
}

func (s *schedule) between(from, to time.Duration) time.Duration {
	return from + time.Duration(s.Int64N(int64(to-from)))
}

// options draws a configuration, which may differ from that of the last process.
func (s *schedule) options() (words string, option func(*Config)) {
	timing := s.timings[s.IntN(len(s.timings))]
	drain := time.Duration(s.IntN(2)) * 500 * time.Millisecond
	local := s.IntN(2)
	return timing.Profile, func(c *Config) {
		c.Timing, c.Drain, c.YieldWait, c.RestartLocal, c.RestartWithin = timing, drain, 8*time.Second, local, time.Minute
		c.OnStoreLoss, c.Ask = s.policy, s.peers.ask
		c.Log = zerolog.Nop()
		if *scheduleSeed != 0 {
			c.Log = zerolog.New(zerolog.ConsoleWriter{Out: s.t.Output(), NoColor: true, TimeFormat: time.StampMilli}).With().Timestamp().Logger()
		}
	}
}

// fault makes one thing happen.
func (s *schedule) fault() {
	site := s.sites[s.IntN(len(s.sites))]
	name := site.name
	client := s.store.Client(name)
	switch n := s.IntN(28); {
	case n < 3 && site.lives():
		steps, rest := 1+s.IntN(40), s.between(100*time.Millisecond, 12*time.Second)
		s.note("%s freezes in %d steps for %v", name, steps, rest)
		site.now.gate.trap(steps, rest)
	case n < 6 && site.lives():
		s.note("%s is killed", name)
		site.now.kill()
	case n < 7 && site.lives():
		s.note("%s is told to end", name)
		site.now.cause(errKilled)
		site.end()
	case n < 8 && site.lives():
		s.note("%s detaches", name)
		site.now.cause(election.ErrDetach)
		site.end()
	case n < 9:
		if r := site.program.current(); r != nil {
			s.note("the controller of %s is killed", name)
			select {
			case r.kill <- "killed by SIGKILL":
			default:
			}
		}
	case n < 10:
		s.note("the controller of %s is unhealthy for a while", name)
		site.health.set("http: 500")
		time.AfterFunc(s.between(time.Millisecond, 3*time.Second), func() { site.health.set("") })
	case n < 12:
		d := s.between(100*time.Millisecond, 8*time.Second)
		s.note("%s is cut off for %v", name, d)
		client.Partition()
		time.AfterFunc(d, client.Heal)
	case n < 13:
		verbs := []string{"Claim", "Release", "HandOver", "Hold", "Publish", "Grant"}
		verb := verbs[s.IntN(len(verbs))]
		if s.IntN(2) == 0 {
			s.note("a reply to %s of %s is lost", verb, name)
			client.LoseReplies(1, verb)
		} else {
			d := s.between(time.Millisecond, 6*time.Second)
			s.note("a %s of %s arrives %v late", verb, name, d)
			client.DeliverLate(1, d, verb)
		}
	case n < 14:
		d := s.between(time.Second, 8*time.Second)
		s.note("the store is away for %v", d)
		s.store.Down()
		time.AfterFunc(d, func() { s.store.Up(); s.store.Restart() })
	case n < 22:
		s.stranger(n)
	default:
		s.operator(n)
	}
}

// operator makes an operator decide something.
func (s *schedule) operator(n int) {
	store := s.store.Client("operator")
	snap, err := store.Read(s.t.Context())
	if err != nil {
		return // the store is away
	}
	switch n {
	case 22, 23:
		all := election.Standbys{}
		for _, site := range s.sites {
			if s.IntN(4) == 0 {
				all[site.name] = election.Standby{By: "ana", Ban: s.IntN(2) == 0}
			}
		}
		s.note("on standby: %v", all)
		_ = store.Put(s.t.Context(), election.Put{Key: election.StandbyKey, Value: all.Encode()})
	case 24:
		if snap.Active != nil {
			s.note("a restart of %s in place", snap.Active.Controller)
			r := election.Request{ID: fmt.Sprint(s.Uint64()), Op: election.OpRestart, By: "ana", Term: snap.Active.Term, For: time.Minute}
			_ = store.Put(s.t.Context(), election.Put{Key: "request", Value: r.Encode(), If: new(election.Version)})
		}
	case 25:
		if snap.Active != nil {
			at := time.Now().Add(s.between(0, 10*time.Second))
			s.note("a switchover is scheduled")
			r := election.Request{ID: fmt.Sprint(s.Uint64()), Op: election.OpScheduled, By: "ana", Term: snap.Active.Term, For: time.Minute, At: at}
			_ = store.Put(s.t.Context(), election.Put{Key: "request", Value: r.Encode(), If: new(election.Version)})
		}
	default:
		s.powerOff(store)
	}
}

// powerOff ends everything on the host of one that has reigned, and confirms that it is dead. The
// certificate may come late, when another reigns already or the host is up again.
func (s *schedule) powerOff(store election.Backend) {
	site := s.sites[s.IntN(len(s.sites))]
	if site.lives() {
		site.now.kill()
	}
	if r := site.program.current(); r != nil {
		select {
		case r.kill <- "powered off":
		default:
		}
	}
	for s.runs(site.name) {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(s.between(0, 200*time.Millisecond))
	snap, err := store.Read(s.t.Context())
	if err != nil {
		return
	}
	dead, err := election.Certify(snap, site.name)
	s.note("%s is powered off and confirmed dead (%v)", site.name, err)
	if err != nil {
		return
	}
	dead.By = "ana"
	if s.IntN(3) == 0 { // the operator's write is slow, and the host is up before it
		words, option := s.options()
		s.note("%s starts, %s", site.name, words)
		site.boot(option, slowAs(site))
		time.Sleep(s.between(0, 3*time.Second))
	}
	_ = store.Put(s.t.Context(), election.Put{Key: election.DeadKey, Value: dead.Encode()})
}

// stranger makes somebody write to the store by hand, or request something.
func (s *schedule) stranger(n int) {
	operator := s.store.Client("operator")
	switch n {
	case 14, 15:
		s.note("the role key is removed")
		s.store.Remove("active")
	case 16:
		leases := s.store.Leases()
		if len(leases) > 0 {
			l := leases[s.IntN(len(leases))]
			s.note("the store drops %s", l)
			s.store.RevokeEarly(l)
		}
	case 17:
		s.note("somebody writes over the role key")
		value := `{"controller":"mallory","term":9007199254740991}`
		if s.IntN(2) == 0 {
			s.store.Overwrite("active", value)
		} else if s.store.Value("active") != "" {
			s.store.OverwriteKept("active", value)
		}
	case 18:
		values := []string{"seven", "", "18446744073709551615", "9223372036854775806", fmt.Sprint(10 + s.IntN(90)), "0"}
		v := values[s.IntN(len(values))]
		s.note("somebody writes %q into the term key", v)
		s.store.Overwrite("term", v)
	case 19, 20:
		to := s.sites[s.IntN(len(s.sites))].name
		if s.IntN(2) == 0 {
			to = ""
		}
		snap, err := operator.Read(s.t.Context())
		if err == nil && snap.Active != nil {
			s.note("switchover to %q", to)
			r := election.Request{ID: "1", Op: "switchover", To: to, By: "ana", Term: snap.Active.Term, For: time.Minute}
			_ = operator.Put(s.t.Context(), election.Put{Key: "request", Value: r.Encode(), If: new(election.Version)})
		}
	case 21:
		d := s.between(time.Second, 6*time.Second)
		s.note("paused for %v", d)
		s.store.Overwrite("pause", string(mustPause()))
		time.AfterFunc(d, func() { s.store.Remove("pause") })
	}
}

func mustPause() []byte { return []byte(`{"by":"ana"}`) }

// runSchedule plays one seed and returns what went wrong.
func runSchedule(t *testing.T, seed uint64) (wrong []string, log []string) {
	w := newWorld(t)
	s := &schedule{world: w, Rand: rand.New(rand.NewPCG(seed, 1)), policy: election.StoreLossStop, peers: &peers{world: w, down: map[string]bool{}}}
	if seed%4 == 0 {
		s.policy = election.StoreLossFailsafe
	}
	for _, profile := range []string{election.ProfileDefault, election.ProfileFast} {
		timing, err := election.Profile(profile)
		if err != nil {
			t.Fatal(err)
		}
		s.timings = append(s.timings, timing)
	}
	s.timings = append(s.timings, election.Timing{
		Profile: "consul", TTL: 10 * time.Second, Validity: 8 * time.Second, RenewEvery: time.Second,
		StopBudget: time.Second, Beat: true, Silence: 8500 * time.Millisecond,
	})
	for i := range 2 + int(seed%2) {
		site := w.site(fmt.Sprintf("ctl-%c", 'a'+i))
		site.program.startsIn, site.program.stopsIn = s.between(0, 300*time.Millisecond), s.between(0, 1500*time.Millisecond)
		site.program.host.slow = (s.Float64() - 0.5) * 0.018
		s.sites = append(s.sites, site)
	}
	for _, site := range s.sites {
		words, option := s.options()
		s.note("%s starts, %s", site.name, words)
		site.boot(option, slowAs(site))
	}
	for range 30 {
		time.Sleep(s.between(0, 1500*time.Millisecond))
		s.fault()
		for _, site := range s.sites {
			if !site.lives() && s.IntN(3) == 0 {
				words, option := s.options()
				s.note("%s starts, %s", site.name, words)
				site.boot(option, slowAs(site))
			}
		}
	}
	s.settle()
	served := false
	for end := time.Now().Add(2 * time.Minute); !served && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		for _, site := range s.sites {
			served = served || site.now.sidecar.Serving() && w.runs(site.name)
		}
	}
	unlisted := s.policy == election.StoreLossFailsafe // the operator may have to decide about these
	if !served && !unlisted {
		for _, site := range s.sites {
			v := site.now.sidecar.View()
			wrong = append(wrong, fmt.Sprintf("nobody serves: %s is %s (%s), decides %s: %s", site.name, v.Status.State, v.Status.Reason, v.Decision.Code, v.Decision.Why))
		}
	}
	for _, site := range s.sites {
		site.now.cause(errKilled)
		site.end()
		site.health.set("")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return append(wrong, w.overlaps...), s.log
}

func slowAs(s *site) func(*Config) {
	return func(c *Config) { c.Clock = s.program.host.clock }
}

// settle ends all faults.
func (s *schedule) settle() {
	time.Sleep(10 * time.Second)
	s.note("all faults end")
	s.store.Remove("pause")
	s.store.Remove("request")
	s.store.Remove(election.StandbyKey)
	s.store.Up()
	for _, site := range s.sites {
		if site.now != nil {
			site.now.gate.thaw()
		}
		site.health.set("")
		if !site.lives() {
			words, option := s.options()
			s.note("%s starts, %s", site.name, words)
			site.boot(option, slowAs(site))
		}
	}
}

// TestNeverTwoWhateverHappens plays random schedules: processes are frozen at any step, thawed,
// killed, and restarted with another configuration. Links break, replies are lost, keys are written
// by hand, and an operator decides something: who is on standby, when to move or restart, and that a
// host that is off is dead. Two controllers never run at once, no term occurs twice, and in the end one serves. To
// replay a failed schedule with its log: go test ./sidecar -run TestNeverTwoWhateverHappens
// -schedule.seed SEED
func TestNeverTwoWhateverHappens(t *testing.T) {
	count, first := 150, rand.Uint64N(1<<32)
	if os.Getenv("TANIST_LONG") != "" {
		count = 5000
	}
	if *schedules > 0 {
		count = *schedules
	}
	if *scheduleSeed != 0 {
		count, first = 1, *scheduleSeed
	}
	for i := range count {
		seed := first + uint64(i)
		var wrong, log []string
		ok := t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				wrong, log = runSchedule(t, seed)
			})
		})
		if len(wrong) > 0 || !ok {
			t.Fatalf("seed %d:\n%s\n\n%s", seed, strings.Join(wrong, "\n"), strings.Join(log, "\n"))
		}
	}
}
