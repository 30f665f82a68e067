package storagequeue

import (
	"fmt"
	"net/url"
	"regexp"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/internal/azstorage"
)

const (
	defaultLeaseDuration = 2 * time.Minute
	defaultConcurrency   = 16
)

// Config says which queue to lease from, and how.
type Config struct {
	// ConnectionString is the one that the portal shows: with AccountName and AccountKey, or with QueueEndpoint
	// and SharedAccessSignature. UseDevelopmentStorage=true means an emulator on this machine.
	ConnectionString string
	// Queue is the name of the queue. It must exist.
	Queue string
	// PoisonQueue is where poisoned messages go; <queue>-poison by default, as Azure Functions has it. It is created
	// when it is needed.
	PoisonQueue string
	// LeaseDuration is how long a message is held without renewal: one second to seven days, two minutes by default. The
	// service counts whole seconds, so it is rounded up to them.
	LeaseDuration time.Duration
	// Concurrency is how many requests may be under way at a time in one call; 16 by default.
	Concurrency int
}

// account fills in the defaults, refuses what cannot work, and reads the connection string.
func (c *Config) account() (azstorage.Account, error) {
	if c.PoisonQueue == "" {
		c.PoisonQueue = c.Queue + "-poison"
	}
	if c.LeaseDuration == 0 {
		c.LeaseDuration = defaultLeaseDuration
	}
	if c.Concurrency == 0 {
		c.Concurrency = defaultConcurrency
	}
	if err := checkName("queue", c.Queue); err != nil {
		return azstorage.Account{}, err
	}
	if err := checkName("poison queue", c.PoisonQueue); err != nil {
		return azstorage.Account{}, err
	}
	switch {
	case c.PoisonQueue == c.Queue:
		return azstorage.Account{}, fmt.Errorf("the poison queue %q is the queue itself; name another one: %w", c.PoisonQueue, lease.ErrInvalid)
	case c.LeaseDuration < time.Second || c.LeaseDuration > maxVisibility:
		return azstorage.Account{}, fmt.Errorf("lease duration %s is out of range; use 1s to 168h: %w", c.LeaseDuration, lease.ErrInvalid)
	case c.Concurrency < 0:
		return azstorage.Account{}, fmt.Errorf("concurrency %d is negative; use 1 or more: %w", c.Concurrency, lease.ErrInvalid)
	}
	c.LeaseDuration = wholeSeconds(c.LeaseDuration)
	return azstorage.Parse("connection string", c.ConnectionString, azstorage.Queue)
}

// wholeSeconds rounds up.
func wholeSeconds(d time.Duration) time.Duration {
	return (d + time.Second - 1).Truncate(time.Second)
}

var queueName = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

func checkName(key, name string) error {
	if len(name) < 3 || len(name) > 63 || !queueName.MatchString(name) {
		return fmt.Errorf("%s %q is no name that Azure allows; use 3 to 63 lowercase letters, digits and single hyphens, "+
			"beginning and ending with a letter or digit: %w", key, name, lease.ErrInvalid)
	}
	return nil
}

// identity names a queue of the account; all else, such as credentials or the protocol, may change without it being
// another source.
func identity(a azstorage.Account, queue string) string {
	u := url.URL{Scheme: "azure-storage-queue", Host: a.Host(azstorage.Queue), Path: a.Endpoint(azstorage.Queue).Path + "/" + queue}
	return u.String()
}
