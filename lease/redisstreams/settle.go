package redisstreams

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lighterman-dev/lighterman/lease"
)

const (
	settleChunk = 500
	poisonChunk = 50 // these carry payloads
)

// Extend implements lease.Source.
func (s *Source) Extend(ctx context.Context, leases []*lease.Lease) []error {
	return inChunks(leases, settleChunk, func(l *lease.Lease) *lease.Lease { return l }, func(chunk []*lease.Lease) []error {
		args := s.arguments(chunk, s.consumer)
		for _, l := range chunk {
			args = append(args, l.ID, l.Receipt, 0)
		}
		sentAt := time.Now()
		errs := s.run(ctx, "extending leases of", claimScript, chunk, args)
		for i, l := range chunk {
			if errs == nil || errs[i] == nil {
				l.Granted(sentAt, s.lease)
			}
		}
		return errs
	})
}

// Complete implements lease.Source.
func (s *Source) Complete(ctx context.Context, leases []*lease.Lease) []error {
	return inChunks(leases, settleChunk, func(l *lease.Lease) *lease.Lease { return l }, func(chunk []*lease.Lease) []error {
		args := s.arguments(chunk)
		for _, l := range chunk {
			args = append(args, l.ID, l.Receipt)
		}
		errs := s.run(ctx, "completing messages of", completeScript, chunk, args)
		spend(chunk, errs)
		return errs
	})
}

// Requeue implements lease.Source.
func (s *Source) Requeue(ctx context.Context, returns []lease.Return) []error {
	return inChunks(returns, settleChunk, func(r lease.Return) *lease.Lease { return r.Lease }, func(chunk []lease.Return) []error {
		leases := make([]*lease.Lease, len(chunk))
		for i, r := range chunk {
			leases[i] = r.Lease
		}
		args := s.arguments(leases, returnedConsumer)
		soonest := s.lease
		for _, r := range chunk {
			delay := min(max(r.Delay, 0), s.lease)
			soonest = min(soonest, delay)
			args = append(args, r.Lease.ID, r.Lease.Receipt, (s.lease - delay).Milliseconds())
		}
		errs := s.run(ctx, "requeueing messages of", claimScript, leases, args)
		spend(leases, errs)
		// Whoever receives next finds them; two milliseconds for what Redis rounds.
		s.mu.Lock()
		s.returned.notAfter(time.Now().Add(soonest + 2*time.Millisecond))
		if soonest == 0 {
			s.returned.next = time.Time{}
		}
		s.mu.Unlock()
		return errs
	})
}

const poisoning = "poisoning messages of"

// Poison implements lease.Source. The copy has the original's fields, and lighterman-id, lighterman-reason,
// lighterman-attempts and lighterman-job after them. Copy and removal are one script, or one transaction.
func (s *Source) Poison(ctx context.Context, poisoned []lease.Poisoned) []error {
	return inChunks(poisoned, poisonChunk, func(p lease.Poisoned) *lease.Lease { return p.Lease }, func(chunk []lease.Poisoned) []error {
		leases := make([]*lease.Lease, len(chunk))
		for i, p := range chunk {
			leases[i] = p.Lease
		}
		args := s.arguments(leases)
		for _, p := range chunk {
			args = append(args, p.Lease.ID, p.Lease.Receipt, p.Reason, p.Attempts, p.Job)
		}
		reply, err := await(ctx, func() ([]any, error) {
			return poisonScript.Run(ctx, s.client, []string{s.stream, s.poison}, args...).Slice()
		})
		if err == nil && len(reply) != 2 {
			err = fmt.Errorf("redis: the answer has %d parts, want 2", len(reply))
		}
		if err != nil {
			return s.allFailed(poisoning, leases, err)
		}
		var errs []error
		fail := func(at any, why func(i int) error) {
			n, _ := at.(int64)
			i := int(n) - 1
			if i < 0 || i >= len(chunk) {
				return
			}
			if err := why(i); err != nil {
				if errs == nil {
					errs = make([]error, len(chunk))
				}
				errs[i] = err
			}
		}
		failed, _ := reply[0].([]any)
		for _, r := range failed {
			pair, _ := r.([]any)
			if len(pair) != 2 {
				continue
			}
			fail(pair[0], func(i int) error {
				text, _ := pair[1].(string)
				if text == "" {
					return lost(leases[i])
				}
				return s.notCopied(serverError(text))
			})
		}
		large, _ := reply[1].([]any)
		for _, at := range large {
			fail(at, func(i int) error { return s.poisonLarge(ctx, chunk[i]) })
		}
		spend(leases, errs)
		return errs
	})
}

// poisonLarge poisons a message with more fields than a script can copy. The fields are read, which is safe since an entry
// never changes, and one transaction adds the copy and then does what depends on the lease.
func (s *Source) poisonLarge(ctx context.Context, p lease.Poisoned) error {
	id := p.Lease.ID
	copied := []any{"lighterman-id", id, "lighterman-reason", p.Reason, "lighterman-attempts", p.Attempts, "lighterman-job", p.Job}
	args := append(s.arguments([]*lease.Lease{p.Lease}), id, p.Lease.Receipt)
	// How the two parts of the transaction ended.
	type answer struct {
		copyErr error
		moved   int
	}
	a, err := await(ctx, func() (answer, error) {
		entries, err := s.client.Do(ctx, "XRANGE", s.stream, id, id).Slice()
		if err != nil || len(entries) == 0 {
			return answer{}, err
		}
		entry, _ := entries[0].([]any)
		if len(entry) != 2 {
			return answer{}, fmt.Errorf("redis: an entry has %d parts, want 2", len(entry))
		}
		fields, _ := entry[1].([]any)
		var adding, removing *redis.Cmd
		_, err = s.client.TxPipelined(ctx, func(tx redis.Pipeliner) error {
			adding = tx.Do(ctx, slices.Concat([]any{"XADD", s.poison, "*"}, fields, copied)...)
			// Not by its hash: a transaction could not send the script where the server does not know it yet.
			removing = copiedScript.Eval(ctx, tx, []string{s.stream, s.poison}, args...)
			return nil
		})
		if addErr := adding.Err(); addErr != nil {
			return answer{copyErr: addErr}, nil //nolint:nilerr // what failed is the copy; its error says so
		}
		if err != nil {
			return answer{}, err
		}
		moved, err := removing.Int()
		return answer{moved: moved}, err
	})
	switch {
	case err != nil:
		return s.allFailed(poisoning, []*lease.Lease{p.Lease}, err)[0]
	case a.copyErr != nil:
		return s.notCopied(a.copyErr)
	case a.moved == 0:
		return lost(p.Lease)
	}
	return nil
}

func (s *Source) notCopied(err error) error {
	return s.wrap("copying to the poison stream "+strconv.Quote(s.poison)+" a message of", err)
}

// serverError is an error of Redis that arrived as text.
type serverError string

func (e serverError) Error() string { return string(e) }

// RedisError marks it for go-redis.
func (serverError) RedisError() {}

var _ redis.Error = serverError("")

// arguments begins the arguments of a script that acts on leases.
func (s *Source) arguments(leases []*lease.Lease, more ...any) []any {
	lowest, highest := idRange(leases)
	args := make([]any, 0, 4+len(more)+5*len(leases))
	return append(append(args, s.group, s.consumer, lowest, highest), more...)
}

// run runs a script that returns the lost leases by index.
func (s *Source) run(ctx context.Context, doing string, script *redis.Script, leases []*lease.Lease, args []any) []error {
	indices, err := await(ctx, func() ([]int64, error) {
		return script.Run(ctx, s.client, []string{s.stream}, args...).Int64Slice()
	})
	if err != nil {
		return s.allFailed(doing, leases, err)
	}
	if len(indices) == 0 {
		return nil
	}
	errs := make([]error, len(leases))
	for _, n := range indices {
		if i := int(n) - 1; i >= 0 && i < len(leases) {
			errs[i] = lost(leases[i])
		}
	}
	return errs
}

// allFailed is one error for all leases; without the group there are no leases.
func (s *Source) allFailed(doing string, leases []*lease.Lease, err error) []error {
	if groupGone(err) || noKey(err) {
		s.ready.Store(false)
		err = fmt.Errorf("%w: %w", lease.ErrLost, err)
	}
	err = s.wrap(doing, err)
	errs := make([]error, len(leases))
	for i := range errs {
		errs[i] = err
	}
	return errs
}

// spend marks the leases that were settled, so that nothing more is tried with them.
func spend(leases []*lease.Lease, errs []error) {
	for i, l := range leases {
		if errs == nil || errs[i] == nil {
			l.Receipt = ""
		}
	}
}

// inChunks applies do to a batch piece by piece. Leases that were settled before are lost without asking the server.
func inChunks[T any](batch []T, size int, of func(T) *lease.Lease, do func([]T) []error) []error {
	if len(batch) <= size && !slices.ContainsFunc(batch, func(t T) bool { return of(t).Receipt == "" }) {
		if len(batch) == 0 {
			return nil
		}
		return do(batch)
	}
	errs := make([]error, len(batch))
	failed := false
	live := make([]T, 0, len(batch))
	at := make([]int, 0, len(batch))
	for i, t := range batch {
		if of(t).Receipt == "" {
			errs[i], failed = lost(of(t)), true
			continue
		}
		live, at = append(live, t), append(at, i)
	}
	for start := 0; start < len(live); start += size {
		end := min(start+size, len(live))
		for i, err := range do(live[start:end]) {
			if err != nil {
				errs[at[start+i]], failed = err, true
			}
		}
	}
	if !failed {
		return nil
	}
	return errs
}

// idRange is the lowest and the highest id among leases.
func idRange(leases []*lease.Lease) (lowest, highest string) {
	for _, l := range leases {
		if lowest == "" || compareIDs(l.ID, lowest) < 0 {
			lowest = l.ID
		}
		if highest == "" || compareIDs(l.ID, highest) > 0 {
			highest = l.ID
		}
	}
	return lowest, highest
}

// compareIDs compares entry ids, which are two numbers each.
func compareIDs(a, b string) int {
	aTime, aSeq, _ := strings.Cut(a, "-")
	bTime, bSeq, _ := strings.Cut(b, "-")
	return cmp.Or(compareNumbers(aTime, bTime), compareNumbers(aSeq, bSeq))
}

// compareNumbers compares numbers without leading zeros.
func compareNumbers(a, b string) int {
	return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
}
