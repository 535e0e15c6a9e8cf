package simulation

import (
	"math/rand/v2"
	"time"
)

// chance is the source of all that happens. What one process meets is a function of the seed, the process, and how often it did the
// same before: it does not depend on the order in which goroutines of one instant run.
type chance uint64

// mix is the finalizer of splitmix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// of returns the chance of something that is named by words and numbers.
func (c chance) of(word string, n uint64) chance {
	h := uint64(c)
	for i := range len(word) {
		h = (h ^ uint64(word[i])) * 0x100000001b3
	}
	return chance(mix(h ^ mix(n)))
}

// in returns a number in [0,n).
func (c chance) in(n uint64) uint64 { return mix(uint64(c)) % n }

// one reports whether something happens that happens once in n times.
func (c chance) one(n uint64) bool { return c.in(n) == 0 }

// between returns a duration in [from,to).
func (c chance) between(from, to time.Duration) time.Duration {
	if to <= from {
		return from
	}
	return from + time.Duration(c.in(uint64(to-from)))
}

// dice is the stream of a single goroutine's choices.
type dice struct{ *rand.Rand }

func (c chance) dice(word string) dice {
	return dice{rand.New(rand.NewPCG(uint64(c.of(word, 1)), uint64(c.of(word, 2))))}
}

func (d dice) between(from, to time.Duration) time.Duration {
	return from + time.Duration(d.Int64N(int64(to-from)))
}

// pick returns one of all.
func pick[T any](d dice, all ...T) T { return all[d.IntN(len(all))] }
