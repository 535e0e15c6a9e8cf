package election

import (
	"fmt"
	"math"
	"syscall"
	"time"
	"unsafe"
)

// Instant is a point on CLOCK_BOOTTIME, in nanoseconds since the host booted. Unlike the monotonic
// clock of package time, this clock runs while the host is suspended, so a lease that ended during
// a suspend is seen to have ended. Instants of different hosts or boots are not comparable.
type Instant int64

// Never is a deadline that does not come.
const Never Instant = math.MaxInt64

// Clock returns the current instant. [BootClock] is the real one. Tests in fake time use their own.
type Clock func() Instant

// Clocks of clock_gettime(2).
const (
	clockMonotonicRaw = 4
	clockBoottime     = 7
)

// BootClock reads CLOCK_BOOTTIME. It is safe for concurrent use.
func BootClock() Instant { return readClock(clockBoottime) }

// RawClock reads CLOCK_MONOTONIC_RAW, which no time daemon adjusts and which stops while the host
// is suspended. It serves only to check the rate of CLOCK_BOOTTIME.
func RawClock() Instant { return readClock(clockMonotonicRaw) }

func readClock(id uintptr) Instant {
	var ts syscall.Timespec
	_, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, id, uintptr(unsafe.Pointer(&ts)), 0)
	if errno != 0 {
		panic(fmt.Sprintf("cannot read clock %d: %v", id, errno)) // every Linux since 2.6.39 has both
	}
	return Instant(ts.Nano())
}

// rate compares the rate of a clock with that of another that nobody adjusts.
type rate struct {
	known     bool
	boot, raw Instant
}

// slow takes a reading of both clocks, and reports whether boot has since the last reading advanced
// less than [MaxDrift] allows. If boot advanced more, the host was suspended or the clock is fast;
// that only shortens what is counted on it.
func (r *rate) slow(boot, raw Instant) bool {
	dBoot, dRaw := boot.Sub(r.boot), raw.Sub(r.raw)
	known := r.known
	r.known, r.boot, r.raw = true, boot, raw
	return known && float64(dRaw) > float64(dBoot)*(1+MaxDrift)+float64(slack)
}

// Add returns i+d; [Never] stays never.
func (i Instant) Add(d time.Duration) Instant {
	if i == Never {
		return Never
	}
	return i + Instant(d)
}

// Sub returns the duration from o to i.
func (i Instant) Sub(o Instant) time.Duration {
	if i == Never {
		return math.MaxInt64
	}
	return time.Duration(i - o)
}
