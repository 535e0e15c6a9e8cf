package host

import (
	"bytes"
	"encoding/json"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

const (
	longestLine    = 4096
	linesPerSecond = 100
)

// lines logs what a plugin writes, a line each. A plugin that writes without end does not drown the
// log.
type lines struct {
	log zerolog.Logger

	mu      sync.Mutex
	rest    []byte
	skip    bool // the rest of a line that was too long
	second  time.Time
	logged  int
	dropped int
}

// Write implements [io.Writer].
func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(b)
	for {
		line, after, whole := bytes.Cut(b, []byte("\n"))
		if !l.skip {
			l.rest = append(l.rest, line[:min(len(line), longestLine-len(l.rest))]...)
		}
		l.skip = !whole && len(l.rest) == longestLine
		if whole || l.skip {
			l.tell(strings.TrimSpace(string(l.rest)))
			l.rest = l.rest[:0]
		}
		if !whole {
			return n, nil
		}
		b, l.skip = after, false
	}
}

// tell logs one line, at the level that it names if it is a record of zerolog or hclog.
func (l *lines) tell(line string) {
	if line == "" {
		return
	}
	if now := time.Now(); now.Sub(l.second) >= time.Second {
		if l.dropped > 0 {
			l.log.Warn().Int("lines", l.dropped).Msg("plugin writes too much; lines dropped")
		}
		l.second, l.logged, l.dropped = now, 0, 0
	}
	if l.logged++; l.logged > linesPerSecond {
		l.dropped++
		return
	}
	var record struct {
		Level   string `json:"level"`
		Level2  string `json:"@level"`
		Message string `json:"message"`
		Msg2    string `json:"@message"`
	}
	level := zerolog.InfoLevel
	if json.Unmarshal([]byte(line), &record) == nil && record.Message+record.Msg2 != "" {
		if own, err := zerolog.ParseLevel(record.Level + record.Level2); err == nil && own < zerolog.FatalLevel {
			level = own
		}
	}
	l.log.WithLevel(level).Str("line", line).Msg("plugin writes")
}
