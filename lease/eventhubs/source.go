package eventhubs

import (
	"errors"
	"fmt"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

// New makes a source. It does not connect; Check does. Values that cannot work are reported as lease.ErrInvalid.
func New(c Config) (lease.Source, error) {
	s, err := c.settings()
	if err != nil {
		return nil, err
	}
	log, err := newHub(s)
	if err != nil {
		return nil, err
	}
	checkpoints, err := newCheckpoints(s)
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	poison, err := newPoison(s)
	if err != nil {
		return nil, errors.Join(err, checkpoints.Close(), log.Close())
	}
	return partitioned.New(partitioned.Config{
		Log:           log,
		Checkpoints:   checkpoints,
		Poison:        poison,
		Identity:      s.namespace.identity(s.EventHub, s.ConsumerGroup),
		Name:          fmt.Sprintf("event hub %q", s.EventHub),
		Start:         s.Start,
		LeaseDuration: s.LeaseDuration,
		Level:         s.Level,
		Owner:         s.Owner,
	}), nil
}

func newPoison(s settings) (partitioned.Poison, error) {
	if s.PoisonEventHub != "" {
		return newPoisonHub(s)
	}
	return newPoisonQueue(s)
}

var (
	_ partitioned.Log         = (*hub)(nil)
	_ partitioned.Reader      = (*reader)(nil)
	_ partitioned.Checkpoints = (*checkpoints)(nil)
	_ partitioned.Poison      = (*poisonQueue)(nil)
	_ partitioned.Poison      = (*poisonHub)(nil)
)
