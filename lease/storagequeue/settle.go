package storagequeue

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2/queueerror"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/internal/azstorage"
	"github.com/lighterman-dev/lighterman/lease/internal/call"
)

// copied begins the receipt of a lease whose message is in the poison queue already, but could not be deleted yet. The
// next Poison with this lease then does not copy it again.
const copied = "copied "

// Extend implements lease.Source.
func (s *Source) Extend(ctx context.Context, leases []*lease.Lease) []error {
	return call.Each(len(leases), s.concurrency, func(i int) error { return s.extend(ctx, leases[i]) })
}

// Complete implements lease.Source.
func (s *Source) Complete(ctx context.Context, leases []*lease.Lease) []error {
	return call.Each(len(leases), s.concurrency, func(i int) error { return s.complete(ctx, leases[i]) })
}

// Requeue implements lease.Source.
func (s *Source) Requeue(ctx context.Context, returns []lease.Return) []error {
	return call.Each(len(returns), s.concurrency, func(i int) error {
		l := returns[i].Lease
		delay := min(max(returns[i].Delay, 0), maxVisibility)
		if _, err := s.update(ctx, "requeueing", l, delay); err != nil {
			return err
		}
		l.Receipt = "" // the message is no longer ours
		return nil
	})
}

// Poison implements lease.Source.
func (s *Source) Poison(ctx context.Context, poisoned []lease.Poisoned) []error {
	return call.Each(len(poisoned), s.concurrency, func(i int) error {
		l := poisoned[i].Lease
		if strings.HasPrefix(l.Receipt, copied) {
			return s.complete(ctx, l)
		}
		if err := s.extend(ctx, l); err != nil {
			return err
		}
		if err := s.copyToPoison(ctx, l); err != nil {
			return err
		}
		l.Receipt = copied + l.Receipt
		return s.complete(ctx, l)
	})
}

func (s *Source) extend(ctx context.Context, l *lease.Lease) error {
	mark := ""
	if strings.HasPrefix(l.Receipt, copied) {
		mark = copied
	}
	sentAt := time.Now()
	receipt, err := s.update(ctx, "extending the lease of", l, s.lease)
	if err != nil {
		return err
	}
	l.Receipt = mark + receipt
	l.Granted(sentAt, s.lease)
	return nil
}

// update gives the message a new visibility timeout, and its old text.
func (s *Source) update(ctx context.Context, doing string, l *lease.Lease, visibility time.Duration) (receipt string, err error) {
	if l.Receipt == "" {
		return "", s.spent(doing, l)
	}
	response, err := s.queue.UpdateMessage(ctx, l.ID, strings.TrimPrefix(l.Receipt, copied), string(l.Body),
		&azqueue.UpdateMessageOptions{VisibilityTimeout: to.Ptr(seconds(visibility))})
	if err != nil {
		return "", wrapLease(s.doing(doing, l), err)
	}
	if response.PopReceipt == nil {
		return "", fmt.Errorf("%s: the service answered without a pop receipt: %w", s.doing(doing, l), lease.ErrLost)
	}
	return *response.PopReceipt, nil
}

func (s *Source) complete(ctx context.Context, l *lease.Lease) error {
	if l.Receipt == "" {
		return s.spent("completing", l)
	}
	if _, err := s.queue.DeleteMessage(ctx, l.ID, strings.TrimPrefix(l.Receipt, copied), nil); err != nil {
		return wrapLease(s.doing("completing", l), err)
	}
	l.Receipt = ""
	return nil
}

// copyToPoison writes the copy, which never expires, and creates the poison queue if it is missing.
func (s *Source) copyToPoison(ctx context.Context, l *lease.Lease) error {
	doing := fmt.Sprintf("copying message %s to poison queue %q", l.ID, s.poisonName)
	enqueue := func() error {
		_, err := s.poison.EnqueueMessage(ctx, string(l.Body), &azqueue.EnqueueMessageOptions{TimeToLive: to.Ptr(int32(-1))})
		return err
	}
	err := enqueue()
	if queueerror.HasCode(err, queueerror.QueueNotFound) {
		if _, err := s.poison.Create(ctx, nil); err != nil && !queueerror.HasCode(err, queueerror.QueueAlreadyExists) {
			return wrap(fmt.Sprintf("creating poison queue %q", s.poisonName), err)
		}
		err = enqueue()
	}
	err = wrap(doing, err)
	var e *azstorage.Error
	if errors.As(err, &e) && e.Status == http.StatusNotFound {
		e.Kind = nil // it is the queue itself that ErrNotFound speaks of
	}
	return err
}

func (s *Source) doing(doing string, l *lease.Lease) string {
	return fmt.Sprintf("%s message %s of queue %q", doing, l.ID, s.name)
}

func (s *Source) spent(doing string, l *lease.Lease) error {
	return fmt.Errorf("%s: it was settled before: %w", s.doing(doing, l), lease.ErrLost)
}
