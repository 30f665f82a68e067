package storagequeue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2"

	"github.com/lighterman-dev/lighterman/lease"
)

// Receive implements lease.Source.
func (s *Source) Receive(ctx context.Context, limit int) ([]*lease.Lease, error) {
	limit = min(limit, maxPerRequest*s.concurrency)
	if limit <= 0 {
		return nil, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	requests, done := outlive(ctx, grace)
	defer done()

	leases := make([]*lease.Lease, 0, limit)
	rest := limit
	if !s.full.Load() {
		first := min(rest, maxPerRequest)
		got, err := s.receive(requests, first)
		leases = append(leases, got...)
		rest -= first
		if err != nil || len(got) < first {
			return leases, ended(ctx, leases, err)
		}
	}
	if rest > 0 && ctx.Err() == nil {
		var mu sync.Mutex
		var errs []error
		var wg sync.WaitGroup
		for ; rest > 0; rest -= maxPerRequest {
			n := min(rest, maxPerRequest)
			wg.Go(func() {
				got, err := s.receive(requests, n)
				mu.Lock()
				defer mu.Unlock()
				leases = append(leases, got...)
				if err != nil {
					errs = append(errs, err)
				}
			})
		}
		wg.Wait()
		if len(errs) > 0 {
			s.full.Store(false)
			return leases, ended(ctx, leases, errors.Join(errs...))
		}
	}
	s.full.Store(len(leases) == limit)
	return leases, ended(ctx, leases, nil)
}

// ended replaces an error that only comes from the context's end by the context's own, and there is none where the call
// was worth it.
func ended(ctx context.Context, leases []*lease.Lease, err error) error {
	if ctx.Err() == nil {
		return err
	}
	if err == nil && len(leases) > 0 {
		return nil
	}
	return ctx.Err()
}

// receive is one request.
func (s *Source) receive(ctx context.Context, n int) ([]*lease.Lease, error) {
	sentAt := time.Now()
	response, err := s.queue.DequeueMessages(ctx, &azqueue.DequeueMessagesOptions{
		NumberOfMessages:  to.Ptr(int32(n)), //nolint:gosec // 32 at most
		VisibilityTimeout: to.Ptr(seconds(s.lease)),
	})
	if err != nil {
		return nil, wrap(fmt.Sprintf("receiving from queue %q", s.name), err)
	}
	leases := make([]*lease.Lease, 0, len(response.Messages))
	for _, m := range response.Messages {
		if m == nil || m.MessageID == nil || m.PopReceipt == nil {
			continue
		}
		l := &lease.Lease{Message: lease.Message{ID: *m.MessageID, Body: []byte{}}, Receipt: *m.PopReceipt}
		if m.MessageText != nil {
			l.Body = []byte(*m.MessageText)
		}
		if m.InsertionTime != nil {
			l.EnqueuedAt = *m.InsertionTime
		}
		if m.DequeueCount != nil {
			l.Deliveries = *m.DequeueCount
		}
		l.Granted(sentAt, s.lease)
		leases = append(leases, l)
	}
	return leases, nil
}

// outlive is a context that ends a while after ctx does.
func outlive(ctx context.Context, by time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(by)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel()
		case <-longer.Done():
		}
	})
	return longer, func() {
		stop()
		cancel()
	}
}

func seconds(d time.Duration) int32 {
	return int32(wholeSeconds(d) / time.Second) //nolint:gosec // seven days at most
}
