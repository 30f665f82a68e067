package storagequeue

import (
	"errors"
	"net/http"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2/queueerror"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/internal/azstorage"
)

// wrap says what failed, and classifies an error of a request that is about the queue as a whole.
func wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	e := azstorage.Wrap(doing, err)
	if queueerror.HasCode(err, queueerror.QueueNotFound, queueerror.QueueDisabled) {
		e.Kind = lease.ErrNotFound
	}
	return e
}

// wrapLease is wrap for a request that acts on one lease. A stale receipt is answered with 400 or with 404, a message that
// has gone with 404, and when the queue has gone so have its leases.
func wrapLease(doing string, err error) error {
	wrapped := wrap(doing, err)
	var e *azstorage.Error
	if !errors.As(wrapped, &e) {
		return wrapped
	}
	if e.Status == http.StatusNotFound || queueerror.HasCode(err, queueerror.PopReceiptMismatch, queueerror.MessageNotFound) {
		e.Kind = lease.ErrLost
	}
	return e
}
