package main

import (
	"io"
	"os"
	"time"

	"github.com/rs/zerolog"

	"github.com/tanist/tanist/cmd/tanist/config"
)

// newLog makes the logger that a configuration asks for: lines for people on a terminal, JSON elsewhere.
func newLog(c config.Log, to io.Writer) zerolog.Logger {
	level, err := zerolog.ParseLevel(c.Level)
	if err != nil {
		level = zerolog.InfoLevel // the configuration was checked
	}
	format := c.Format
	if format == "auto" {
		format = "json"
		if f, ok := to.(*os.File); ok {
			if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
				format = "console"
			}
		}
	}
	if format == "console" {
		_, plain := os.LookupEnv("NO_COLOR")
		to = zerolog.ConsoleWriter{Out: to, TimeFormat: time.TimeOnly + ".000", NoColor: plain}
	}
	return zerolog.New(to).Level(level).Hook(stamp{})
}

// stamp adds the time as RFC 3339 with milliseconds, in UTC.
type stamp struct{}

func (stamp) Run(e *zerolog.Event, _ zerolog.Level, _ string) {
	e.Str(zerolog.TimestampFieldName, time.Now().UTC().Format("2006-01-02T15:04:05.000Z07:00"))
}
