package haproxy

import (
	"bufio"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// socket is HAProxy's command line on a Unix socket: the admin socket of a worker, or the socket of
// the master. Every exchange uses its own connection, because a connection that stays open across a
// reload keeps talking to the old worker.
type socket struct {
	path    string
	timeout time.Duration
}

// ask sends commands as one line and returns the whole reply until HAProxy closes.
func (s socket) ask(ctx context.Context, commands ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", s.path)
	if err != nil {
		return "", fmt.Errorf("cannot reach HAProxy: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := io.WriteString(conn, strings.Join(commands, ";")+"\n"); err != nil {
		return "", fmt.Errorf("cannot ask HAProxy at %s: %v", s.path, err)
	}
	_ = conn.(*net.UnixConn).CloseWrite() // otherwise the master waits for more
	b, err := io.ReadAll(io.LimitReader(conn, 8<<20))
	if err != nil {
		return string(b), fmt.Errorf("cannot read HAProxy's answer at %s: %v", s.path, err)
	}
	return string(b), nil
}

// The bits of srv_admin_state that matter (HAProxy's management guide, "show servers state").
const (
	adminMaint = 0x01 | 0x02 | 0x20 | 0x40 // forced, inherited, by resolution, by host name
	adminDrain = 0x08 | 0x10
)

const checkEnabled = 0x04 // in srv_check_state

// server is the actual state of a server in HAProxy.
type server struct {
	name      string
	addr      netip.AddrPort // zero: not resolved
	admin     int
	up        bool
	since     time.Duration // since its last state change
	checking  bool
	checkAddr netip.AddrPort // zero unless set
	sessions  int
}

func (s server) maint() bool { return s.admin&adminMaint != 0 }
func (s server) drain() bool { return s.admin&adminDrain != 0 }

// look is what one HAProxy worker reported.
type look struct {
	pid       int
	structure string                       // of the loaded configuration; "" if HAProxy does not report it
	servers   map[string]map[string]server // by backend and name
	queued    map[string]int               // waiting requests by backend
}

func (s socket) look(ctx context.Context) (look, error) {
	answer, err := s.ask(ctx, "show info", "show servers state", "show stat -1 6 -1")
	if err != nil {
		return look{}, err
	}
	return parseLook(answer)
}

func parseLook(answer string) (look, error) {
	v := look{servers: map[string]map[string]server{}, queued: map[string]int{}}
	var columns map[string]int
	section := ""
	lines := bufio.NewScanner(strings.NewReader(answer))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case line == "":
			section = ""
		case strings.HasPrefix(line, "# be_id "):
			section, columns = "servers", index(strings.Fields(line[2:]))
		case strings.HasPrefix(line, "# pxname,"):
			section, columns = "stat", index(strings.Split(line[2:], ","))
		case section == "servers":
			if err := v.addServer(columns, strings.Fields(line)); err != nil {
				return look{}, err
			}
		case section == "stat":
			r, err := csv.NewReader(strings.NewReader(line)).Read()
			if err != nil {
				return look{}, fmt.Errorf("cannot read HAProxy's answer: %v", err)
			}
			get := getter(columns, r)
			if get("svname") == "BACKEND" {
				v.queued[get("pxname")], _ = strconv.Atoi(get("qcur"))
			}
			if sv, ok := v.servers[get("pxname")][get("svname")]; ok {
				sv.sessions, _ = strconv.Atoi(get("scur"))
				v.servers[get("pxname")][get("svname")] = sv
			}
		case strings.HasPrefix(line, "Pid: "):
			v.pid, _ = strconv.Atoi(line[5:])
		case strings.HasPrefix(line, "description: tanist "):
			v.structure = strings.TrimSpace(strings.TrimPrefix(line, "description: tanist "))
		}
	}
	if v.pid == 0 {
		return look{}, errors.New("cannot read HAProxy's answer: it has no Pid; is the admin socket at level admin?")
	}
	return v, lines.Err()
}

func (v look) addServer(columns map[string]int, fields []string) error {
	get := getter(columns, fields)
	num := func(name string) int { n, _ := strconv.Atoi(get(name)); return n }
	if get("be_name") == "" || get("srv_name") == "" || get("srv_admin_state") == "" {
		return fmt.Errorf("cannot read HAProxy's answer: %.100q is not a server", strings.Join(fields, " "))
	}
	s := server{
		name: get("srv_name"), admin: num("srv_admin_state"), up: num("srv_op_state") != 0,
		since: time.Duration(num("srv_time_since_last_change")) * time.Second, checking: num("srv_check_state")&checkEnabled != 0,
		addr: addrPort(get("srv_addr"), num("srv_port")), checkAddr: addrPort(get("srv_check_addr"), num("srv_check_port")),
	}
	if v.servers[get("be_name")] == nil {
		v.servers[get("be_name")] = map[string]server{}
	}
	v.servers[get("be_name")][s.name] = s
	return nil
}

func addrPort(addr string, port int) netip.AddrPort {
	a, err := netip.ParseAddr(addr)
	if err != nil || port <= 0 || port > 65535 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(port))
}

func index(names []string) map[string]int {
	m := make(map[string]int, len(names))
	for i, n := range names {
		m[n] = i
	}
	return m
}

func getter(columns map[string]int, fields []string) func(string) string {
	return func(name string) string {
		if i, ok := columns[name]; ok && i < len(fields) {
			return fields[i]
		}
		return ""
	}
}

// processes is what the master reports about itself and its workers.
type processes struct {
	reloads, failed int
	worker          int   // the current worker's pid; 0 if there is none
	old             []int // workers that are finishing their sessions
}

func (s socket) processes(ctx context.Context) (processes, error) {
	answer, err := s.ask(ctx, "show proc")
	if err != nil {
		return processes{}, err
	}
	p, err := parseProcesses(answer)
	if err != nil {
		return processes{}, fmt.Errorf("cannot read HAProxy's answer at %s: %v", s.path, err)
	}
	return p, nil
}

func parseProcesses(answer string) (processes, error) {
	var p processes
	section, known := "", false
	for line := range strings.Lines(answer) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case f[0] == "#" || strings.HasPrefix(f[0], "#"):
			section = strings.Join(f, " ")
		case len(f) >= 3 && f[1] == "master":
			known = true
			p.reloads, _ = strconv.Atoi(f[2])
			if _, after, ok := strings.Cut(line, "failed: "); ok {
				n, _, _ := strings.Cut(after, "]")
				p.failed, _ = strconv.Atoi(n)
			}
		case len(f) >= 2 && f[1] == "worker":
			pid, _ := strconv.Atoi(f[0])
			if section == "# old workers" {
				p.old = append(p.old, pid)
			} else {
				p.worker = pid
			}
		}
	}
	if !known {
		return processes{}, errors.New("there is no master in it")
	}
	return p, nil
}

// cutOldWorkers ends the sessions of some backends in old workers, except the spared ones, and
// returns how many sessions it found. An old worker refuses "shutdown sessions server", because its
// proxies are stopped, but it ends sessions one by one. A pass that finds no session shows that it
// did.
func (s socket) cutOldWorkers(ctx context.Context, backends map[string]map[int]bool) (found int, err error) {
	p, err := s.processes(ctx)
	if err != nil {
		return 0, err
	}
	for _, pid := range p.old {
		at := fmt.Sprintf("@!%d ", pid)
		answer, err := s.ask(ctx, at+"show sess")
		if err != nil {
			return found, err
		}
		for line := range strings.Lines(answer) {
			f := strings.Fields(line)
			if len(f) == 0 || !strings.HasPrefix(f[0], "0x") {
				continue
			}
			for _, w := range f[1:] {
				backend, ok := strings.CutPrefix(w, "be=")
				if spared, owed := backends[backend]; !ok || !owed || spared[pid] {
					continue
				}
				found++
				if _, err := s.ask(ctx, at+"shutdown session "+strings.TrimSuffix(f[0], ":")); err != nil {
					return found, err
				}
			}
		}
	}
	return found, nil
}
