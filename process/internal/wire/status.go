package wire

import "golang.org/x/sys/unix"

// Answer is what a status command says of a program.
type Answer uint8

// The answers. Whatever is not one of the first three tells nothing.
const (
	AnswerUnknown Answer = iota
	AnswerRuns           // exit status 0
	AnswerGone           // 3: it is not running
	// 1 or 2: it is dead, and its PID or lock file is left. Many commands end so for other reasons.
	AnswerDead
)

// AnswerOf reads the end of a status command as the Linux Standard Base defines it. A command that
// was killed, could not be executed or does not know itself has not answered.
func AnswerOf(status unix.WaitStatus) Answer {
	if !status.Exited() {
		return AnswerUnknown
	}
	switch status.ExitStatus() {
	case 0:
		return AnswerRuns
	case 3:
		return AnswerGone
	case 1, 2:
		return AnswerDead
	}
	return AnswerUnknown
}

// Answers are the last ones in a row.
type Answers struct {
	Last Answer
	Row  int
}

// Add takes note of an answer.
func (a *Answers) Add(answer Answer) {
	if answer != a.Last {
		a.Row = 0
	}
	a.Last, a.Row = answer, a.Row+1
}

// Absent reports whether the answers show that the program does not run: twice the same, because
// between the end of one program and the start of the next a single one may be true by chance. That
// it is dead is believed only of a program that was seen below the guard, where the kernel agrees.
func (a *Answers) Absent(resident bool) bool {
	return a.Row >= 2 && (a.Last == AnswerGone || a.Last == AnswerDead && resident)
}
