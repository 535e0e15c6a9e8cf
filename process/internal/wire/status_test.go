package wire

import (
	"testing"

	"golang.org/x/sys/unix"
)

func exited(code int) unix.WaitStatus { return unix.WaitStatus(code << 8) }

// TestStatusCommandsAnswer: only what means "not running" does, and only twice in a row.
func TestStatusCommandsAnswer(t *testing.T) {
	for _, test := range []struct {
		status             unix.WaitStatus
		want               Answer
		gone, goneResident bool
	}{
		{exited(0), AnswerRuns, false, false},
		{exited(3), AnswerGone, true, true},
		{exited(1), AnswerDead, false, true},
		{exited(2), AnswerDead, false, true},
		{exited(4), AnswerUnknown, false, false},
		{exited(126), AnswerUnknown, false, false},
		{exited(127), AnswerUnknown, false, false},
		{exited(255), AnswerUnknown, false, false},
		{unix.WaitStatus(unix.SIGKILL), AnswerUnknown, false, false},
		{unix.WaitStatus(unix.SIGSEGV), AnswerUnknown, false, false},
	} {
		if got := AnswerOf(test.status); got != test.want {
			t.Errorf("%#x: %v, want %v", test.status, got, test.want)
		}
		var a Answers
		a.Add(AnswerOf(test.status))
		if a.Absent(true) || a.Absent(false) {
			t.Errorf("%#x: once is enough", test.status)
		}
		a.Add(AnswerOf(test.status))
		if a.Absent(false) != test.gone || a.Absent(true) != test.goneResident {
			t.Errorf("%#x twice: %t and, below the guard, %t", test.status, a.Absent(false), a.Absent(true))
		}
	}
	var a Answers
	for _, answer := range []Answer{AnswerGone, AnswerRuns, AnswerGone} {
		a.Add(answer)
	}
	if a.Absent(true) {
		t.Error("twice, but not in a row")
	}
}
