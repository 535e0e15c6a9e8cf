package daemon

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/api"
	"github.com/tanist/tanist/cmd/tanist/config"
)

// Log is the log of a process. Writing to it never waits for a reader: lines queue up. Lines that
// do not fit are dropped, counted, and reported once lines are read again.
type Log struct {
	zerolog.Logger
	lines *queue
	level *levelFilter
}

// Self is the identity of a process.
type Self struct {
	Version string
	Log     *Log
	// Events makes the stream of a cluster's events, for the REST interface. It follows the store as
	// long as somebody listens and ctx lasts. nil: there is none.
	Events func(ctx context.Context, s Store) api.Stream
}

// metrics returns the metrics that every process has.
func (s Self) metrics(cluster string) api.Gauges {
	return api.Gauges{Constant: map[string]string{"cluster": cluster}, Samples: s.samples}
}

func (s Self) samples() []api.Sample {
	return []api.Sample{
		{Name: "tanist_build_info", Help: "The version that runs.", Labels: map[string]string{"version": s.Version}, Value: 1},
		{Name: "tanist_log_lines_dropped_total", Help: "Log lines that were not read in time.", Counter: true, Value: float64(s.Log.Dropped())},
	}
}

// OpenLog opens the configured log: lines for people on a terminal, JSON elsewhere. After that a
// vanished reader ends neither this process (no SIGPIPE) nor any process it starts.
func OpenLog(c config.Log, to io.Writer) *Log {
	// Catch the signal instead of ignoring it: started programs would inherit an ignored signal.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	return openLog(c, to)
}

func openLog(c config.Log, to io.Writer) *Log {
	lines := &queue{to: to, wake: make(chan struct{}, 1), ended: make(chan struct{})}
	level := &levelFilter{}
	logger := format(c, to, lines).Sample(level)
	reporter := format(c, to, to)
	lines.report = func(dropped uint64) {
		reporter.Warn().Uint64("dropped", dropped).Msg("log lines dropped: they were not read in time")
	}
	go lines.run()
	log := &Log{Logger: logger, lines: lines, level: level}
	log.SetLevel(c.Level)
	return log
}

// SetLevel changes the level of this logger and of all loggers derived from it.
func (l *Log) SetLevel(name string) {
	level, err := zerolog.ParseLevel(name)
	if err != nil {
		level = zerolog.InfoLevel // the configuration was checked
	}
	l.level.Store(int32(level))
}

// levelFilter is a level that can change while loggers use it.
type levelFilter struct{ atomic.Int32 }

// Sample implements [zerolog.Sampler].
func (f *levelFilter) Sample(level zerolog.Level) bool { return int32(level) >= f.Load() }

// Dropped returns how many lines have been dropped.
func (l *Log) Dropped() uint64 {
	l.lines.mu.Lock()
	defer l.lines.mu.Unlock()
	return l.lines.total
}

// Close waits for the last lines to be written, but not for a reader that does not read.
func (l *Log) Close() {
	l.lines.close()
	select {
	case <-l.lines.ended:
	case <-time.After(flushTimeout):
	}
}

const (
	flushTimeout = time.Second
	// queueLimit is how many bytes of lines wait for a reader. It is enough for all lines of a
	// takeover.
	queueLimit = 1 << 20
)

// format returns the logger that writes to out, in the format that suits the file to, where the
// lines end up.
func format(c config.Log, to, out io.Writer) zerolog.Logger {
	form := c.Format
	if form == "auto" {
		form = "json"
		if f, ok := to.(*os.File); ok {
			if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
				form = "console"
			}
		}
	}
	if form == "console" {
		_, plain := os.LookupEnv("NO_COLOR")
		out = zerolog.ConsoleWriter{Out: out, TimeFormat: time.TimeOnly + ".000", NoColor: plain}
	}
	return zerolog.New(out).Hook(stamp{})
}

// stamp adds the time as RFC 3339 with milliseconds, in UTC.
type stamp struct{}

func (stamp) Run(e *zerolog.Event, _ zerolog.Level, _ string) {
	e.Str(zerolog.TimestampFieldName, time.Now().UTC().Format("2006-01-02T15:04:05.000Z07:00"))
}

// queue passes lines to a writer that may block forever. Its methods are safe for concurrent use.
type queue struct {
	to     io.Writer
	report func(dropped uint64) // writes to the writer, and may block as well
	wake   chan struct{}
	ended  chan struct{}

	mu      sync.Mutex
	waiting [][]byte
	size    int
	dropped uint64 // not reported yet
	total   uint64
	closed  bool
}

// Write implements [io.Writer]. It never blocks and never fails.
func (q *queue) Write(line []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.size+len(line) > queueLimit {
		q.drop()
		return len(line), nil
	}
	q.waiting = append(q.waiting, append([]byte(nil), line...)) // zerolog reuses its buffer
	q.size += len(line)
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return len(line), nil
}

func (q *queue) drop() { q.dropped, q.total = q.dropped+1, q.total+1 }

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		q.closed = true
		close(q.wake)
	}
}

// run writes the lines until the queue is closed and empty.
func (q *queue) run() {
	defer close(q.ended)
	for {
		line, dropped, more := q.next()
		switch {
		case dropped > 0:
			q.report(dropped)
		case line != nil:
			if !write(q.to, line) {
				q.mu.Lock()
				q.drop()
				q.mu.Unlock()
			}
		case !more:
			return
		default:
			<-q.wake
		}
	}
}

// next returns the oldest line, or the number of dropped lines once all lines before them are
// written.
func (q *queue) next() (line []byte, dropped uint64, more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) > 0 {
		line, q.waiting = q.waiting[0], q.waiting[1:]
		q.size -= len(line)
		return line, 0, true
	}
	dropped, q.dropped = q.dropped, 0
	return nil, dropped, !q.closed
}

// write writes a line. It waits while the output is full, if that is a terminal or pipe that
// another program made non-blocking.
func write(to io.Writer, line []byte) bool {
	for {
		n, err := to.Write(line)
		line = line[n:]
		if !errors.Is(err, syscall.EAGAIN) {
			return err == nil
		}
		time.Sleep(fullWait)
	}
}

const fullWait = 20 * time.Millisecond
