package eventhubs

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/internal/azstorage"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

const (
	defaultConsumerGroup = "$Default"
	defaultContainer     = "lighterman-checkpoints"
	defaultLeaseDuration = 2 * time.Minute
	minLeaseDuration     = 100 * time.Millisecond
)

// Config says which event hub to lease from, and how.
type Config struct {
	// ConnectionString is the one of a shared access policy, of the namespace or of the event hub, or one with a
	// SharedAccessSignature. The policy must allow to listen, and for PoisonEventHub also to send. If the connection string
	// has an EntityPath, that must be EventHub. UseDevelopmentEmulator=true means an emulator: no TLS.
	ConnectionString string
	// EventHub is the name of the event hub. It must exist.
	EventHub string
	// ConsumerGroup is $Default by default. It must exist, and nobody else may read in its name.
	ConsumerGroup string
	// CheckpointConnectionString is that of the storage account that has the checkpoints, and the poison queue.
	CheckpointConnectionString string
	// CheckpointContainer is the blob container for checkpoints; lighterman-checkpoints by default. It is created if it is
	// missing. Event hubs can share one.
	CheckpointContainer string
	// PoisonQueue is the Storage Queue for poisoned events. It is created when it is needed.
	PoisonQueue string
	// PoisonEventHub is where poisoned events go instead: another event hub of the namespace. It must exist.
	PoisonEventHub string
	// Start is where to begin in a partition that has no checkpoint; at the oldest event by default.
	Start partitioned.StartPosition
	// LeaseDuration is how long an event is held without renewal; two minutes by default.
	LeaseDuration time.Duration
	// Level is our owner level; that of a later owner must be higher.
	Level int64
	// Owner names us in checkpoints. By default it is a name that no other process has.
	Owner string
}

// settings are what a Config comes to.
type settings struct {
	Config
	namespace namespace
	account   azstorage.Account
}

// settings fills in the defaults, refuses what cannot work, and reads the connection strings.
func (c Config) settings() (settings, error) {
	setDefault(&c.ConsumerGroup, defaultConsumerGroup)
	setDefault(&c.CheckpointContainer, defaultContainer)
	if c.LeaseDuration == 0 {
		c.LeaseDuration = defaultLeaseDuration
	}
	if c.Owner == "" {
		c.Owner = uniqueOwner()
	}
	if err := c.check(); err != nil {
		return settings{}, err
	}
	namespace, err := parseConnectionString(c.ConnectionString, c.EventHub)
	if err != nil {
		return settings{}, err
	}
	services := []azstorage.Service{azstorage.Blob}
	if c.PoisonEventHub == "" {
		services = append(services, azstorage.Queue)
	}
	account, err := azstorage.Parse("checkpoint connection string", c.CheckpointConnectionString, services...)
	if err != nil {
		return settings{}, err
	}
	return settings{Config: c, namespace: namespace, account: account}, nil
}

func setDefault(field *string, value string) {
	if *field == "" {
		*field = value
	}
}

var (
	entityName  = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)
	storageName = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	// ownerName is what a blob's metadata can hold: they travel as HTTP headers.
	ownerName = regexp.MustCompile(`^[!-~]([ -~]*[!-~])?$`)
)

const (
	maxHubName     = 256
	maxGroupName   = 50
	minStorageName = 3
	maxStorageName = 63
)

func (c Config) check() error {
	for _, check := range []error{
		checkEntity("event hub", c.EventHub, maxHubName),
		checkGroup(c.ConsumerGroup),
		checkStorage("checkpoint container", c.CheckpointContainer),
		c.checkPoison(),
	} {
		if check != nil {
			return check
		}
	}
	switch {
	case c.LeaseDuration < minLeaseDuration:
		return fmt.Errorf("lease duration %s is too short; use %s or more: %w", c.LeaseDuration, minLeaseDuration, lease.ErrInvalid)
	case c.Level < 0:
		return fmt.Errorf("owner level %d is negative; use 0 or more: %w", c.Level, lease.ErrInvalid)
	case !ownerName.MatchString(c.Owner):
		return fmt.Errorf("owner %q is no name that a checkpoint can hold; use printable ASCII characters: %w", c.Owner, lease.ErrInvalid)
	case c.Start.Latest && !c.Start.At.IsZero():
		return fmt.Errorf("the start position is the latest event and also a time; choose one: %w", lease.ErrInvalid)
	}
	return nil
}

func (c Config) checkPoison() error {
	switch {
	case c.PoisonEventHub == "":
		return checkStorage("poison queue", c.PoisonQueue)
	case c.PoisonQueue != "":
		return fmt.Errorf("there is a poison queue %q and a poison event hub %q; choose one: %w", c.PoisonQueue, c.PoisonEventHub, lease.ErrInvalid)
	case strings.EqualFold(c.PoisonEventHub, c.EventHub):
		return fmt.Errorf("the poison event hub %q is the event hub itself; name another one: %w", c.PoisonEventHub, lease.ErrInvalid)
	}
	return checkEntity("poison event hub", c.PoisonEventHub, maxHubName)
}

func checkEntity(what, name string, most int) error {
	if len(name) > most || !entityName.MatchString(name) {
		return fmt.Errorf("%s %q is no name that Azure allows; use 1 to %d letters, digits, periods, hyphens and underscores, "+
			"beginning and ending with a letter or digit: %w", what, name, most, lease.ErrInvalid)
	}
	return nil
}

func checkGroup(name string) error {
	if strings.EqualFold(name, defaultConsumerGroup) {
		return nil
	}
	return checkEntity("consumer group", name, maxGroupName)
}

func checkStorage(what, name string) error {
	if len(name) < minStorageName || len(name) > maxStorageName || !storageName.MatchString(name) {
		return fmt.Errorf("%s %q is no name that Azure allows; use %d to %d lowercase letters, digits and single hyphens, "+
			"beginning and ending with a letter or digit: %w", what, name, minStorageName, maxStorageName, lease.ErrInvalid)
	}
	return nil
}

// uniqueOwner names this process so that people recognise it.
func uniqueOwner() string {
	host, err := os.Hostname()
	if err != nil || !ownerName.MatchString(host) {
		host = "unknown"
	}
	b := make([]byte, 6)
	_, _ = rand.Read(b) // never fails
	return "lighterman-" + host + "-" + hex.EncodeToString(b)
}
