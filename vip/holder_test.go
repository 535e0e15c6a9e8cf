package vip

import (
	"testing"
	"time"

	"github.com/tanist/tanist/election"
)

// TestKeeperIsNotBlamedForTheTimeThatItsSidecarStoodStill: whenever the sidecar stands still, and
// for however long, the keeper has its full time to answer.
func TestKeeperIsNotBlamedForTheTimeThatItsSidecarStoodStill(t *testing.T) {
	const second = election.Instant(time.Second)
	for at := time.Duration(0); at < answerWithin; at += 7 * time.Millisecond {
		for _, still := range []time.Duration{0, answerCheck, answerWithin, answerWithin + 50*time.Millisecond, time.Hour} {
			var p patience
			ran := time.Duration(0)
			for now := second; ; now = now.Add(answerCheck) {
				if ran <= at && at < ran+answerCheck {
					now = now.Add(still)
				}
				if p.over(now, 1, true) {
					break
				}
				ran += answerCheck
			}
			if ran < answerWithin || ran > answerWithin+answerCheck {
				t.Errorf("standing still for %v after %v: the keeper was blamed after %v", still, at, ran)
			}
		}
	}
}

// TestKeeperThatAnswersIsNotBlamed: every answer counts, even if later orders wait for theirs.
func TestKeeperThatAnswersIsNotBlamed(t *testing.T) {
	var p patience
	now := election.Instant(time.Second)
	for acked := range uint64(10) {
		for range 9 {
			now = now.Add(answerCheck)
			if p.over(now, acked, true) {
				t.Fatal("the keeper was blamed between two answers")
			}
		}
	}
	if p.over(now, 10, false); p != (patience{}) {
		t.Error("the time before the next order counts")
	}
}
