package azstorage

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"

	"github.com/lighterman-dev/lighterman/lease"
)

// Error is a failed request. The SDK's own error is not in its chain: its text has many lines, and its URLs can hold the
// signature of a shared access signature.
type Error struct {
	Doing string
	// Status and Code are the service's answer; zero and empty where there was none.
	Status int
	Code   string
	// Kind is the class of the error in terms of package lease; nil where it is of none.
	Kind error
	// Remedy says what a person can do about it; empty where nothing need be said.
	Remedy string
	cause  error
	wait   time.Duration
}

// Error implements error.
func (e *Error) Error() string {
	s := e.Doing + ": "
	if e.Kind != nil {
		s += e.Kind.Error() + ": "
	}
	switch {
	case e.Code != "":
		s += fmt.Sprintf("the service answered %d %s", e.Status, e.Code)
	case e.Status != 0:
		s += fmt.Sprintf("the service answered %d %s", e.Status, http.StatusText(e.Status))
	default:
		s += e.cause.Error()
	}
	if e.Remedy != "" {
		s += "; " + e.Remedy
	}
	return s
}

// Unwrap gives the class of the error, and what caused it in the network or the context.
func (e *Error) Unwrap() []error {
	var errs []error
	for _, err := range []error{e.Kind, e.cause} {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// RetryAfter is how long the service asks to wait; zero where it does not say.
func (e *Error) RetryAfter() time.Duration { return e.wait }

// Wrap says what failed, and classifies what all services of an account word alike. The error must not be nil.
func Wrap(doing string, err error) *Error {
	var response *azcore.ResponseError
	if !errors.As(err, &response) {
		return &Error{Doing: doing, cause: withoutURL(err)}
	}
	e := &Error{Doing: doing, Status: response.StatusCode, Code: response.ErrorCode}
	if response.RawResponse != nil {
		e.wait = retryAfter(response.RawResponse.Header)
	}
	switch {
	case e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden,
		e.Code == "InvalidAuthenticationInfo", e.Code == "AuthenticationFailed":
		e.Kind = lease.ErrUnauthorized
	case e.Status == http.StatusTooManyRequests || e.Status == http.StatusServiceUnavailable ||
		e.Status == http.StatusInternalServerError:
		// An overloaded service answers 500 OperationTimedOut as well.
		e.Kind = lease.ErrThrottled
	case e.Code == "InvalidResourceName", e.Code == "OutOfRangeInput", e.Code == "InvalidUri":
		e.Kind = lease.ErrInvalid
	}
	return e
}

// withoutURL takes the URL out of a network error.
func withoutURL(err error) error {
	for _, known := range []error{context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, known) {
			return known
		}
	}
	var inURL *url.Error
	if errors.As(err, &inURL) {
		return inURL.Err
	}
	return err
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
