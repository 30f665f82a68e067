package storagequeue

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2/queueerror"

	"github.com/lighterman-dev/lighterman/lease"
)

// Error is a failed request. The SDK's own error is not in its chain: its text has many lines, and its URLs can hold the
// signature of a shared access signature.
type Error struct {
	doing string
	// Status and Code are the service's answer; zero and empty where there was none.
	Status int
	Code   string
	kind   error
	cause  error
	wait   time.Duration
}

// Error implements error.
func (e *Error) Error() string {
	s := e.doing + ": "
	if e.kind != nil {
		s += e.kind.Error() + ": "
	}
	switch {
	case e.Code != "":
		s += fmt.Sprintf("the service answered %d %s", e.Status, e.Code)
	case e.Status != 0:
		s += fmt.Sprintf("the service answered %d %s", e.Status, http.StatusText(e.Status))
	default:
		s += e.cause.Error()
	}
	return s
}

// Unwrap gives the class of the error in terms of package lease, and what caused it in the network or the context.
func (e *Error) Unwrap() []error {
	var errs []error
	for _, err := range []error{e.kind, e.cause} {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// RetryAfter is how long the service asks to wait; zero where it does not say.
func (e *Error) RetryAfter() time.Duration { return e.wait }

// wrap says what failed, and classifies an error of a request that is about the queue as a whole. This file is the one
// place that knows how the service words its errors.
func wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	var response *azcore.ResponseError
	if !errors.As(err, &response) {
		return &Error{doing: doing, cause: withoutURL(err)}
	}
	e := &Error{doing: doing, Status: response.StatusCode, Code: response.ErrorCode}
	if response.RawResponse != nil {
		e.wait = retryAfter(response.RawResponse.Header)
	}
	switch {
	case queueerror.HasCode(err, queueerror.QueueNotFound, queueerror.QueueDisabled):
		e.kind = lease.ErrNotFound
	case e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden,
		queueerror.HasCode(err, queueerror.InvalidAuthenticationInfo, queueerror.AuthenticationFailed):
		e.kind = lease.ErrUnauthorized
	case e.Status == http.StatusTooManyRequests || e.Status == http.StatusServiceUnavailable ||
		e.Status == http.StatusInternalServerError:
		// An overloaded service answers 500 OperationTimedOut as well.
		e.kind = lease.ErrThrottled
	case queueerror.HasCode(err, queueerror.InvalidResourceName, queueerror.OutOfRangeInput, queueerror.InvalidURI):
		e.kind = lease.ErrInvalid
	}
	return e
}

// wrapLease is wrap for a request that acts on one lease. A stale receipt is answered with 400 or with 404, a message that
// has gone with 404, and when the queue has gone so have its leases.
func wrapLease(doing string, err error) error {
	wrapped := wrap(doing, err)
	var e *Error
	if !errors.As(wrapped, &e) {
		return wrapped
	}
	if e.Status == http.StatusNotFound || queueerror.HasCode(err, queueerror.PopReceiptMismatch, queueerror.MessageNotFound) {
		e.kind = lease.ErrLost
	}
	return e
}

// withoutURL takes the URL out of a network error.
func withoutURL(err error) error {
	if ctxErr := contextError(err); ctxErr != nil {
		return ctxErr
	}
	var inURL *url.Error
	if errors.As(err, &inURL) {
		return inURL.Err
	}
	return err
}

func contextError(err error) error {
	for _, known := range []error{context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, known) {
			return known
		}
	}
	return nil
}

func retryAfter(header http.Header) time.Duration {
	for name, unit := range map[string]time.Duration{
		"Retry-After-Ms": time.Millisecond, "X-Ms-Retry-After-Ms": time.Millisecond, "Retry-After": time.Second,
	} {
		if n, err := strconv.Atoi(header.Get(name)); err == nil && n > 0 {
			return time.Duration(n) * unit
		}
	}
	if at, err := http.ParseTime(header.Get("Retry-After")); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}
