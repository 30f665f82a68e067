package redisstreams

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/lighterman-dev/lighterman/lease"
)

const (
	defaultGroup         = "lighterman"
	defaultLeaseDuration = 2 * time.Minute
	minLeaseDuration     = 100 * time.Millisecond

	// consumerPrefix begins the name of every consumer that was not named by the configuration.
	consumerPrefix = "lighterman-"
	// returnedConsumer holds the messages that were given back. Nobody reads in its name.
	returnedConsumer = "lighterman-returned"

	firstID = "0-0"

	// maxBlock is how long a read waits for new entries. It is short, since go-redis cannot be interrupted in it.
	maxBlock = 500 * time.Millisecond
	// answerTime is how long the answer to a read may take beyond the time for which it blocks.
	answerTime = 5 * time.Second
	// returnedEvery is how often to look for messages that others gave back.
	returnedEvery = time.Second
	// pruneEvery and pruneAfter: how often to remove silent consumers, and how long they must have been silent.
	pruneEvery = time.Hour
	pruneAfter = time.Hour
)

// Config says which stream to lease from, and how.
type Config struct {
	// ConnectionString is a URL: redis://[user:password@]host:port[/database], or rediss:// for TLS. The query
	// parameters of go-redis are understood (dial_timeout, pool_size, …).
	ConnectionString string
	// Stream is the key of the stream. It is created if it does not exist.
	Stream string
	// Group is the consumer group; "lighterman" by default.
	Group string
	// Consumer is our name in the group. By default one that no other process has.
	Consumer string
	// PoisonStream is where poisoned messages go; <stream>:poison by default.
	PoisonStream string
	// LeaseDuration is how long a message is held without renewal; two minutes by default.
	LeaseDuration time.Duration
}

// options fills in the defaults, refuses what cannot work, and makes the client's options. No error of it contains any
// part of the connection string, since every part could be a password that was not escaped.
func (c *Config) options() (*redis.Options, error) {
	if c.Group == "" {
		c.Group = defaultGroup
	}
	if c.Consumer == "" {
		c.Consumer = uniqueConsumer()
	}
	if c.PoisonStream == "" {
		c.PoisonStream = c.Stream + ":poison"
	}
	if c.LeaseDuration == 0 {
		c.LeaseDuration = defaultLeaseDuration
	}
	switch {
	case c.Stream == "":
		return nil, fmt.Errorf("stream is empty; name the key of a stream: %w", lease.ErrInvalid)
	case c.PoisonStream == c.Stream:
		return nil, fmt.Errorf("the poison stream %q is the stream itself; name another key: %w", c.PoisonStream, lease.ErrInvalid)
	case c.Consumer == returnedConsumer:
		return nil, fmt.Errorf("consumer %q is reserved; choose another name: %w", c.Consumer, lease.ErrInvalid)
	case c.LeaseDuration < minLeaseDuration:
		return nil, fmt.Errorf("lease duration %s is too short; use %s or more: %w", c.LeaseDuration, minLeaseDuration, lease.ErrInvalid)
	}
	// Redis counts milliseconds.
	c.LeaseDuration = c.LeaseDuration.Round(time.Millisecond)

	opts, err := parseConnectionString(c.ConnectionString)
	if err != nil {
		return nil, err
	}
	// Without it a context's deadline would not reach the connection.
	opts.ContextTimeoutEnabled = true
	// Neither of these is of use here, and both send commands that some servers do not know.
	opts.DisableIdentity = true
	opts.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	if opts.MaxRetries == 0 {
		// One, for the connections that broke when a server restarted; further ones are the caller's to decide.
		opts.MaxRetries = 1
	}
	opts.DialerRetries = 1
	return opts, nil
}

const wantURL = "write redis://[user:password@]host:port[/database], or rediss:// for TLS, with special characters in user " +
	"and password percent-encoded"

var hostName = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

func parseConnectionString(s string) (*redis.Options, error) {
	s = strings.TrimSpace(s)
	switch {
	case s == "":
		return nil, fmt.Errorf("connection string is empty; %s: %w", wantURL, lease.ErrInvalid)
	case !strings.HasPrefix(s, "redis://") && !strings.HasPrefix(s, "rediss://"):
		if strings.Contains(s, ",password=") {
			return nil, fmt.Errorf("connection string is in the form of StackExchange.Redis (host:port,password=…); %s: %w",
				wantURL, lease.ErrInvalid)
		}
		return nil, fmt.Errorf("connection string is not a Redis URL; %s: %w", wantURL, lease.ErrInvalid)
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("connection string does not parse as a URL; %s: %w", wantURL, lease.ErrInvalid)
	}
	if u.Hostname() == "" {
		return nil, fmt.Errorf("connection string names no host; %s: %w", wantURL, lease.ErrInvalid)
	}
	if _, err := netip.ParseAddr(u.Hostname()); err != nil && !hostName.MatchString(u.Hostname()) {
		return nil, fmt.Errorf("connection string has a host that is none; %s: %w", wantURL, lease.ErrInvalid)
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return nil, fmt.Errorf("connection string has a port that is none; %s: %w", wantURL, lease.ErrInvalid)
		}
	}
	opts, err := redis.ParseURL(s)
	if err != nil {
		return nil, fmt.Errorf("connection string has a database that is no number, or an unknown parameter; %s: %w",
			wantURL, lease.ErrInvalid)
	}
	if opts.DB < 0 {
		return nil, fmt.Errorf("connection string has a negative database; %s: %w", wantURL, lease.ErrInvalid)
	}
	if opts.TLSConfig != nil && opts.TLSConfig.MinVersion < tls.VersionTLS12 {
		opts.TLSConfig.MinVersion = tls.VersionTLS12
	}
	return opts, nil
}

// identity names the stream and the group; all else, such as credentials or TLS, may change without it being another
// source.
func identity(opts *redis.Options, stream, group string) string {
	host, port, err := net.SplitHostPort(opts.Addr)
	if err != nil {
		host, port = opts.Addr, "6379"
	}
	u := url.URL{
		Scheme:   "redis-streams",
		Host:     net.JoinHostPort(strings.ToLower(host), port),
		Path:     "/" + strconv.Itoa(opts.DB) + "/" + stream,
		RawPath:  "/" + strconv.Itoa(opts.DB) + "/" + url.PathEscape(stream),
		RawQuery: url.Values{"group": {group}}.Encode(),
	}
	return u.String()
}

// uniqueConsumer names this process so that people recognise it in XINFO CONSUMERS.
func uniqueConsumer() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "unknown"
	}
	b := make([]byte, 6)
	_, _ = rand.Read(b) // never fails
	return consumerPrefix + host + "-" + hex.EncodeToString(b)
}

// fieldNames lists the names of an entry's fields for a message to a person.
func fieldNames(values map[string]any) string {
	const most = 10
	names := make([]string, 0, len(values))
	for name := range values {
		if len(name) > 64 {
			name = name[:64] + "…"
		}
		names = append(names, strconv.QuoteToASCII(name))
	}
	slices.Sort(names)
	if len(names) > most {
		names = append(names[:most], fmt.Sprintf("and %d more", len(names)-most))
	}
	return strings.Join(names, ", ")
}
