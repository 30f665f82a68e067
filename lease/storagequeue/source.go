// Package storagequeue leases messages from an Azure Storage Queue.
//
// How the service's words map to ours:
//
//	Get Messages        leases up to 32 messages, each for the visibility timeout, which is our lease duration
//	pop receipt         proves the lease; every update changes it, and the one before is worthless from then on
//	Update Message      extends the lease, or gives the message back with a new visibility timeout
//	Delete Message      completes the message
//	dequeue count       is the number of deliveries
//
// An update always sends the text of the message along: the service would keep it if there was none in the request, but
// the SDK then sends an empty one, and the message would be blank for good. So the body is kept with the lease, exactly as
// it came.
//
// There is no batch but in Get Messages. A batch here is many requests side by side, and so is a large Receive: as many
// requests of 32 as it takes. They go out together only while the queue has been giving full answers, or an idle queue
// would be asked many times for nothing.
//
// A request whose answer gets lost may have had its effect, and the service then knows a receipt that we do not. For Extend
// the lease is lost with it; the message comes back after its visibility timeout, and its Job is found running. For Complete
// the next try finds no message and reads as lost: the message is done all the same. The requests of Receive are let
// finish for a moment when the context ends, since what they lease would be nobody's otherwise.
//
// Poison first extends the lease, so that nothing is copied that is no longer ours, then writes the copy, then deletes.
// The poison queue holds the message's text and nothing else: a Storage Queue has no place for a reason. A lost answer can
// leave a second copy there, never none.
//
// What is text to the service is XML on the way: a carriage return can arrive as a line feed, and what XML cannot carry
// never gets into a queue. Producers of arbitrary bytes encode them, mostly as base64.
package storagequeue

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/internal/azstorage"
)

const (
	// maxPerRequest is how many messages the service hands out at a time.
	maxPerRequest = 32
	// maxVisibility is the longest visibility timeout that the service takes.
	maxVisibility = 7 * 24 * time.Hour
	// grace is how long requests of Receive may go on after its context ended.
	grace = time.Second
)

// Source leases messages from one queue. It implements lease.Source.
type Source struct {
	queue       *azqueue.QueueClient
	poison      *azqueue.QueueClient
	name        string
	poisonName  string
	identity    string
	lease       time.Duration // whole seconds
	concurrency int
	close       func()

	// full says that the queue gave all that the last Receive asked for, so that there is likely more.
	full atomic.Bool
}

var _ lease.Source = (*Source)(nil)

// New makes a source. It does not connect; Check does. Values that cannot work are reported as lease.ErrInvalid.
func New(c Config) (*Source, error) {
	account, err := c.account()
	if err != nil {
		return nil, err
	}
	transport, release := azstorage.SharedTransport()
	service, err := account.Queues(transport)
	if err != nil {
		release()
		return nil, err
	}
	return &Source{
		queue:       service.NewQueueClient(c.Queue),
		poison:      service.NewQueueClient(c.PoisonQueue),
		name:        c.Queue,
		poisonName:  c.PoisonQueue,
		identity:    identity(account, c.Queue),
		lease:       c.LeaseDuration,
		concurrency: c.Concurrency,
		close:       release,
	}, nil
}

// Identity implements lease.Source.
func (s *Source) Identity() string { return s.identity }

// Traits implements lease.Source.
func (s *Source) Traits() lease.Traits {
	return lease.Traits{MaxBatch: maxPerRequest * s.concurrency, MaxDelay: maxVisibility}
}

// Check implements lease.Source.
func (s *Source) Check(ctx context.Context) error {
	_, err := s.queue.GetProperties(ctx, nil)
	return wrap(fmt.Sprintf("checking queue %q", s.name), err)
}

// Backlog implements lease.Source. The service counts approximately, and does not tell how many messages are leased.
func (s *Source) Backlog(ctx context.Context) (lease.Backlog, error) {
	properties, err := s.queue.GetProperties(ctx, nil)
	if err != nil {
		return lease.Backlog{}, wrap(fmt.Sprintf("reading the backlog of queue %q", s.name), err)
	}
	b := lease.Backlog{Leased: -1}
	if n := properties.ApproximateMessagesCount; n != nil {
		b.Messages = *n
	}
	return b, nil
}

// Close implements lease.Source.
func (s *Source) Close() error {
	s.close()
	return nil
}
