package election

import "errors"

// ErrUnproven reports that a program can neither be proven gone nor be found running: its guard has
// died or does not answer, and the last deadline of every guard has passed. Retrying does not help,
// because no later check can prove more. A reign that ends with it is released unclean, so that the
// next holder waits as for one that vanished.
var ErrUnproven = errors.New("cannot prove that the program is gone")
