package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tanist/tanist/election"
)

// printer prints for people. On a terminal it keeps one live line below everything else.
type printer struct {
	mu     sync.Mutex
	w      io.Writer
	quiet  bool // no events
	colour bool // it is a terminal
	live   string
}

func newPrinter(f *os.File, quiet bool) *printer {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return &printer{w: f, quiet: quiet, colour: err == nil && os.Getenv("NO_COLOR") == ""}
}

func (p *printer) print(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	fmt.Fprintf(p.w, format, args...)
	p.draw()
}

// show replaces the live line. Without a terminal it does nothing.
func (p *printer) show(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.colour {
		return
	}
	p.erase()
	p.live = line
	p.draw()
}

func (p *printer) erase() {
	if p.live != "" {
		fmt.Fprint(p.w, "\r\x1b[2K")
	}
}

// draw writes the live line without wrapping, so that one erase is enough.
func (p *printer) draw() {
	if p.live != "" {
		fmt.Fprint(p.w, "\x1b[?7l"+p.live+"\x1b[?7h")
	}
}

func (p *printer) paint(code, s string) string {
	if !p.colour {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p *printer) stamp() string {
	return p.paint("2", time.Now().Format("15:04:05.000"))
}

func (p *printer) section(title string) { p.print("\n%s\n", p.paint("1", title)) }
func (p *printer) step(s string)        { p.event(s) }

func (p *printer) event(s string) {
	if !p.quiet {
		p.print("  %s  %s\n", p.stamp(), s)
	}
}

// command prints a command and its output.
func (p *printer) command(line, output string) { p.print("%s\n%s", p.paint("2", "$ "+line), output) }

func millis(m election.Millis) string {
	if m < 0 {
		return "?"
	}
	return fmt.Sprintf("%.0f ms", float64(m))
}

func (p *printer) verdict(r result) {
	good := p.paint("32", "kept")
	if len(r.Broken) > 0 {
		good = p.paint("31;1", "BROKEN: "+strings.Join(r.Broken, "; "))
	}
	p.print("  outage %s (%s own start, %s fence) · overlap %s · %d of %d confirmed rows lost · %d stale writes · %s → %s, term %d · guarantees %s\n",
		millis(r.Outage), millis(r.OwnStart), millis(r.Fence), millis(r.Overlap), r.Lost, r.Confirmed, r.Stale, r.From, r.To, r.TermAfter, good)
}

// results prints the table of the whole tour. With several runs of a part it shows the medians, and
// the worst of the values that must be zero.
func (p *printer) results(r *results, l *lab) {
	if len(r.Runs) == 0 {
		return
	}
	_, watch, _ := l.store.commands()
	p.section("What " + watch + " showed")
	p.print("%s", l.story.columns())

	p.section("The tour")
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "  WHAT HAPPENED\tRUNS\tOUTAGE\tOWN START\tOVERLAP\tCONFIRMED\tROWS LOST\tSTALE WRITES\tACTIVE AFTER")
	for _, sc := range tourScenarios() {
		var outages, starts, overlaps []election.Millis
		var confirmed, lost, stale int
		var last result
		for _, one := range r.Runs {
			if one.Scenario != sc.name {
				continue
			}
			outages, starts, overlaps = append(outages, one.Outage), append(starts, one.OwnStart), append(overlaps, one.Overlap)
			confirmed, lost, stale, last = confirmed+one.Confirmed, lost+one.Lost, stale+one.Stale, one
		}
		if len(outages) == 0 {
			continue
		}
		worst := election.Millis(0)
		for _, o := range overlaps {
			worst = max(worst, o)
		}
		fmt.Fprintf(t, "  %s\t%d\t%s\t%s\t%s\t%d\t%d\t%d\t%s, term %d\n", sc.title, len(outages), millis(median(outages)), millis(median(starts)),
			millis(worst), confirmed, lost, stale, last.To, last.TermAfter)
	}
	_ = t.Flush() // into memory
	p.print("%s", b.String())
	if r.OK {
		p.print("\n  %s\n", p.paint("32;1", "Exactly one controller served at any time; nothing confirmed was lost; nothing stale was accepted."))
	} else {
		p.print("\n  %s\n", p.paint("31;1", "A guarantee was broken:"))
		for _, b := range r.Broken {
			p.print("    %s\n", b)
		}
	}
}

func (p *printer) keep(l *lab) {
	p.section("It keeps running until Ctrl-C")
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "  virtual URL\t%s\n", l.virtualURL)
	for _, s := range l.sides {
		fmt.Fprintf(t, "  %s\t%s\tsidecar %s/v1/cluster\tpid %d\n", s.Name, s.URL, s.API, s.sidecar.pid())
	}
	fmt.Fprintf(t, "  repository\tpsql %q\n", l.super)
	fmt.Fprintf(t, "  files, logs\t%s\n", l.dir)
	_ = t.Flush() // into memory
	environment, watch, get := l.store.commands()
	p.print("%s\n  export %s\n  %s\n  %s\n  %s list -c %s\n", b.String(), environment, watch, get, l.tanist, l.sides[0].Config)
}

// line shows the cluster in one line: the active, the passive, the agents' controller, and what
// users get.
func (v view) line(p *printer, recent []probe) string {
	var parts []string
	for _, c := range v.controllers {
		mark, colour := "○", "2"
		if c.Role == election.RoleActive {
			mark, colour = "●", "32;1"
		}
		parts = append(parts, p.paint(colour, fmt.Sprintf("%s %s %s", mark, c.Name, c.State)))
	}
	for _, a := range v.agents {
		parts = append(parts, fmt.Sprintf("%s → %s", a.Name, cmp.Or(a.Follows, a.State)))
	}
	good := 0
	for _, pr := range recent {
		if pr.Err == "" {
			good++
		}
	}
	users := p.paint("32", fmt.Sprintf("users served %d of %d", good, len(recent)))
	if good < len(recent) || good == 0 {
		users = p.paint("31", fmt.Sprintf("users served %d of %d", good, len(recent)))
	}
	return fmt.Sprintf("  term %d │ %s │ %s", v.term.Term, strings.Join(parts, "  "), users)
}

// watch keeps the live line up to date until ctx ends.
func (l *lab) watch(ctx context.Context) {
	defer l.out.show("")
	for l.out.colour {
		look, cancel := context.WithTimeout(ctx, time.Second)
		v, err := l.view(look)
		cancel()
		if err == nil {
			l.out.show(v.line(l.out, l.virtual.since(election.BootClock().Add(-200*time.Millisecond))))
		}
		if pause(ctx, 100*time.Millisecond) != nil {
			return
		}
	}
}

// picture returns the view of `tanist list`.
func (l *lab) picture(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.tanist, "list", "-c", l.sides[0].Config)
	var errOut strings.Builder
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("cannot list the cluster: %v: %s", err, errOut.String())
	}
	return string(out), nil
}

// story prints and keeps the output of the store's own tool (`etcdctl watch --prefix
// /tanist/lab/role/`).
type story struct {
	mu    sync.Mutex
	lines []storyLine
}

type storyLine struct {
	at         time.Time
	kind       string // PUT or DELETE
	key, value string
}

// watch follows the roles until ctx ends.
func (s *story) watch(ctx context.Context, from store, out *printer) {
	from.follow(ctx, func(kind, key, value string) {
		line := storyLine{time.Now(), kind, key, value}
		s.add(line)
		out.event(line.String())
	})
}

func (s *story) add(line storyLine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, line)
}

// String is one event on one line.
func (l storyLine) String() string {
	if l.value == "" {
		return fmt.Sprintf("%-6s %s", l.kind, l.key)
	}
	return fmt.Sprintf("%-6s %s  %s", l.kind, l.key, l.value)
}

// text is what etcdctl prints: kind, key and value, a line each.
func (s *story) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, l := range s.lines {
		fmt.Fprintf(&b, "%s\n%s\n%s\n", l.kind, l.key, l.value)
	}
	return b.String()
}

// columns is the same with the time, one line per event.
func (s *story) columns() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, l := range s.lines {
		fmt.Fprintf(&b, "  %s  %s\n", l.at.Format("15:04:05.000"), l)
	}
	return b.String()
}
