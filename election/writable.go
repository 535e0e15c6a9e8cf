package election

import (
	"context"
	"errors"
	"fmt"
)

// impossible is a version that no key has.
const impossible Version = 1 << 62

// Writable checks whether the store accepts writes. Reads and renewals do not show that: an etcd
// whose quota is used up answers both, and nobody can claim. It sends a write whose precondition
// cannot hold, so nothing is changed. An error is the store's refusal: [ErrReadOnly] or
// [ErrDenied]. A store that does not answer has not refused.
func Writable(ctx context.Context, k Keys, controller string) error {
	version := impossible
	err := k.Put(ctx, Put{Key: ControllerKey(controller), Value: []byte("{}"), If: &version})
	if errors.Is(err, ErrReadOnly) || errors.Is(err, ErrDenied) {
		return fmt.Errorf("cannot claim: %w", err)
	}
	return nil
}
