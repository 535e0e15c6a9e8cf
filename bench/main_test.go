package bench

import (
	"encoding/binary"
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/tanist/tanist/election"
	"github.com/tanist/tanist/internal/testbed"
)

// The test binary is also the demo controller, which serves and records when.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "controller" {
		if err := controller(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(testbed.Main(m))
}

// controller serves at an address and appends one record per process to a file: when it began to
// serve and when it last did, 8 bytes each, rewritten every millisecond.
func controller(address, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	end, err := f.Seek(0, 2)
	if err != nil {
		return err
	}
	end -= end % 16
	go func() {
		var record [16]byte
		binary.LittleEndian.PutUint64(record[:], uint64(election.BootClock()))
		for {
			binary.LittleEndian.PutUint64(record[8:], uint64(election.BootClock()))
			if _, err := f.WriteAt(record[:], end); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			time.Sleep(time.Millisecond)
		}
	}()
	return http.ListenAndServe(address, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, os.Getenv("TANIST_NAME"), os.Getenv("TANIST_TERM"))
	}))
}

// life is when one process of a controller served.
type life struct{ from, to election.Instant }

func readLives(t *testing.T, path string) []life {
	t.Helper()
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	var lives []life
	for ; len(b) >= 16; b = b[16:] {
		lives = append(lives, life{election.Instant(binary.LittleEndian.Uint64(b)), election.Instant(binary.LittleEndian.Uint64(b[8:]))})
	}
	return lives
}

// overlap returns how long two controllers served at once.
func overlap(a, b []life) time.Duration {
	var sum time.Duration
	for _, x := range a {
		for _, y := range b {
			if d := min(x.to, y.to).Sub(max(x.from, y.from)); d > 0 {
				sum += d
			}
		}
	}
	return sum
}

func TestOverlap(t *testing.T) {
	a := []life{{100, 200}, {400, 500}}
	for _, c := range []struct {
		b    []life
		want time.Duration
	}{{nil, 0}, {[]life{{201, 399}}, 0}, {[]life{{150, 450}}, 100}, {[]life{{0, 1000}}, 200}} {
		if got := overlap(a, c.b); got != c.want {
			t.Errorf("%v: got %v, want %v", c.b, got, c.want)
		}
	}
}
