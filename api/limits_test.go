package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// TestManyAskAtOnce: documents are made a few at a time, whoever asks; roles are answered meanwhile, and a document that hangs becomes a 503.
func TestManyAskAtOnce(t *testing.T) {
	var now, most atomic.Int64
	hang := make(chan struct{})
	s := New(Config{
		Answers: map[string]Answer{"/active": func() (bool, any) { return true, nil }},
		Documents: map[string]Document{"/v1/cluster": func(ctx context.Context) (any, error) {
			n := now.Add(1)
			defer now.Add(-1)
			for was := most.Load(); n > was && !most.CompareAndSwap(was, n); was = most.Load() {
				continue
			}
			select {
			case <-hang:
				return "ok", nil
			case <-ctx.Done():
				return nil, errors.New("the store is away")
			}
		}},
	})
	at, err := s.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	defer running.Wait()
	defer cancel()

	answers := make(chan int, 40)
	var asking sync.WaitGroup
	for range cap(answers) {
		asking.Go(func() {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+at.String()+"/v1/cluster", nil)
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			answers <- resp.StatusCode
		})
	}
	first := <-answers // by now the places are taken, and some have waited for one in vain
	if first != http.StatusServiceUnavailable {
		t.Errorf("a document that hangs answered %d", first)
	}
	if status, _, _ := ask(t, http.DefaultClient, "GET", "http://"+at.String()+"/active"); status != http.StatusOK {
		t.Errorf("a role answered %d while documents hang", status)
	}
	close(hang)
	asking.Wait()
	if n := most.Load(); n != documentsAtOnce {
		t.Errorf("%d documents were made at once, want %d", n, documentsAtOnce)
	}
}

// TestBusySocketIsNotStale: a process that does not get round to answering keeps its socket.
func TestBusySocketIsNotStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for { // fill its backlog
		conn, err := net.Dial("unix", path)
		if err != nil {
			break
		}
		defer conn.Close()
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := New(Config{}).ListenUnix(path); err == nil || !strings.Contains(err.Error(), "another process may") {
		t.Errorf("got %v", err)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("the socket was replaced: %v", err)
	}
}

// TestSocketGoes: a server that ends leaves neither its socket nor anything else.
func TestSocketGoes(t *testing.T) {
	dir := t.TempDir()
	s := New(Config{})
	if err := s.ListenUnix(filepath.Join(dir, "s")); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("there are %v, %v", entries, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.Run(ctx)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left are %v, %v", entries, err)
	}
}
