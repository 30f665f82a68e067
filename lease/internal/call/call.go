// Package call makes calls to servers on behalf of sources: those that heed no context, and many at a time.
package call

import (
	"context"
	"fmt"
	"sync"
)

// Answer is what a call came to.
type Answer[T any] struct {
	Value T
	Err   error
}

// Start makes a call that nobody need wait for.
func Start[T any](call func() (T, error)) <-chan Answer[T] {
	answered := make(chan Answer[T], 1)
	go func() {
		value, err := call()
		answered <- Answer[T]{value, err}
	}()
	return answered
}

// Await makes a call and waits for its answer only as long as ctx lasts; then it fails with the context's error, after the words of noAnswer. A call that
// is left behind must end by other means. It hands over its answer by what it returns, and must touch nothing else.
func Await[T any](ctx context.Context, noAnswer string, call func() (T, error)) (T, error) {
	var none T
	if err := ctx.Err(); err != nil {
		return none, err
	}
	answered := Start(call)
	select {
	case a := <-answered:
		return a.Value, a.Err
	case <-ctx.Done():
	}
	select {
	case a := <-answered: // both at once
		return a.Value, a.Err
	default:
		return none, fmt.Errorf("%s: %w", noAnswer, ctx.Err())
	}
}

// Each makes n calls, so many at a time. It returns the error of each, or nil where all went well, as the methods of lease.Source do.
func Each(n, concurrency int, call func(i int) error) []error {
	if n == 1 {
		if err := call(0); err != nil {
			return []error{err}
		}
		return nil
	}
	var (
		calling sync.WaitGroup
		mu      sync.Mutex
		errs    []error
		places  = make(chan struct{}, concurrency)
	)
	for i := range n {
		places <- struct{}{}
		calling.Go(func() {
			defer func() { <-places }()
			if err := call(i); err != nil {
				mu.Lock()
				defer mu.Unlock()
				if errs == nil {
					errs = make([]error, n)
				}
				errs[i] = err
			}
		})
	}
	calling.Wait()
	return errs
}
