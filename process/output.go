package process

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// Output says where a program's stdout and stderr go. At most one field is set. The zero value
// passes on this process's own stdout and stderr.
//
// With File and Journal the program writes straight to the file or to journald, so that nothing of
// it passes through, or is lost with, guard or sidecar. With Line the guard hands the output on and
// never lets the program wait: should Line be slow or the sidecar be away, the last 256 KiB
// (besides what fits in two pipes) are kept and the loss is told in the output.
type Output struct {
	File    string // a file to append to, made with mode 0640
	Journal string // the name under which journald files the output
	// called for each line, without its end, by one goroutine; line is valid until it returns
	Line func(line []byte)
}

const (
	journalSocket = "/run/systemd/journal/stdout"
	maxLine       = 16 << 10
)

// opened is an Output in use.
type opened struct {
	stdout, stderr *os.File
	own            bool     // whether to close them
	sink           *os.File // the guard's end of the pipe to us
	source         *os.File // our end
	line           func([]byte)
}

func (o Output) open(program string) (*opened, error) {
	set := 0
	for _, is := range []bool{o.File != "", o.Journal != "", o.Line != nil} {
		if is {
			set++
		}
	}
	switch {
	case set > 1:
		return nil, errors.New("the output can go to one place only: a file, the journal or the log")
	case o.File != "":
		f, err := os.OpenFile(o.File, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640) //nolint:gosec // for those who read logs
		if err != nil {
			return nil, fmt.Errorf("the output can't be written: %v", err)
		}
		return &opened{stdout: f, stderr: f, own: true}, nil
	case o.Journal != "":
		f, err := openJournal(journalSocket, o.Journal)
		if err != nil {
			return nil, fmt.Errorf("the output can't go to the journal: %v", err)
		}
		return &opened{stdout: f, stderr: f, own: true}, nil
	case o.Line != nil:
		r, w, err := os.Pipe()
		if err != nil {
			return nil, fmt.Errorf("the output needs a pipe: %v", err)
		}
		return &opened{sink: w, source: r, line: o.Line}, nil
	}
	return &opened{stdout: os.Stdout, stderr: os.Stderr}, nil
}

// openJournal opens a stream to journald, as systemd does for a service. Its protocol is a head of
// seven lines: name, unit, priority, whether lines carry a priority, and whether to forward to
// syslog, kernel log and console.
func openJournal(socket, name string) (*os.File, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer c.Close() //nolint:errcheck // only the descriptor is kept
	if err := c.CloseRead(); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(c, "%s\n\n6\n1\n0\n0\n0\n", filepath.Base(name)); err != nil {
		return nil, err
	}
	f, err := c.File() // blocking, as a program expects
	if err != nil {
		return nil, err
	}
	return f, nil
}

// close closes the handles that the guard has now.
func (o *opened) close() error {
	if o.sink != nil {
		return o.sink.Close()
	}
	if o.own {
		return o.stdout.Close()
	}
	return nil
}

// read hands lines on until the guard has closed its end.
func (o *opened) read(done chan<- struct{}) {
	defer close(done)
	if o.source == nil {
		return
	}
	defer o.source.Close()
	lines := bufio.NewReaderSize(o.source, maxLine)
	for {
		line, err := lines.ReadSlice('\n')
		if n := len(line); n > 0 && line[n-1] == '\n' {
			line = line[:n-1]
			if n > 1 && line[n-2] == '\r' {
				line = line[:n-2]
			}
			o.line(line)
		} else if n > 0 {
			o.line(line) // longer than maxLine, or the last
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}
