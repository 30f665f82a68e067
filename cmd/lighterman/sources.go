package main

import (
	"fmt"

	"github.com/lighterman-dev/lighterman/dispatcher"
	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/eventhubs"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
	"github.com/lighterman-dev/lighterman/lease/redisstreams"
	"github.com/lighterman-dev/lighterman/lease/storagequeue"
)

// openSource makes the source that a set of annotations names. A new source is one more case here.
func openSource(spec *annotation.Spec, c dispatcher.Connection) (lease.Source, error) {
	switch spec.Source {
	case annotation.SourceAzureStorageQueue:
		return storagequeue.New(storagequeue.Config{
			ConnectionString: c.Source,
			Queue:            spec.Queue,
			PoisonQueue:      spec.PoisonQueue,
			LeaseDuration:    spec.LeaseDuration,
		})
	case annotation.SourceAzureEventHubs:
		return eventhubs.New(eventhubs.Config{
			ConnectionString:           c.Source,
			EventHub:                   spec.EventHub,
			ConsumerGroup:              spec.ConsumerGroup,
			CheckpointConnectionString: c.Checkpoints,
			CheckpointContainer:        spec.CheckpointContainer,
			PoisonQueue:                spec.PoisonQueue,
			PoisonEventHub:             spec.PoisonEventHub,
			Start:                      partitioned.StartPosition(spec.Start),
			LeaseDuration:              spec.LeaseDuration,
			Level:                      c.Level,
		})
	case annotation.SourceRedisStreams:
		return redisstreams.New(redisstreams.Config{
			ConnectionString: c.Source,
			Stream:           spec.Stream,
			Group:            spec.ConsumerGroup,
			PoisonStream:     spec.PoisonQueue,
			LeaseDuration:    spec.LeaseDuration,
		})
	}
	return nil, fmt.Errorf("%w: source %q is not available in this version", lease.ErrInvalid, spec.Source)
}
