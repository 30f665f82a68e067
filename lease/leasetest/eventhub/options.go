package eventhub

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"time"
)

// Options say how a Broker runs. The zero value listens on a free port of 127.0.0.1, without TLS.
type Options struct {
	// Addr is where to listen. Empty: a free port of 127.0.0.1.
	Addr string
	// TLS, if set, is required of every connection. Without it, the connection string says UseDevelopmentEmulator=true.
	TLS *tls.Config
	// Policies are the shared access policies. None: RootManageSharedAccessKey, with a new key and all rights.
	Policies []Policy
	// JWT says which bearer tokens are accepted. Nil: none.
	JWT *JWT

	// IdleTimeout is how often a peer must send something; after twice as long its connection is dropped. Default: a minute.
	IdleTimeout time.Duration
	// MaxEvents and MaxBytes bound what each partition keeps: the oldest events go first. Defaults: 1,048,576 and 128 MiB.
	MaxEvents, MaxBytes int
	// MaxMessageSize bounds what is sent in one transfer, be it an event or a batch. Default: 1 MiB.
	MaxMessageSize int
	// NullAttachRefusals refuses links with an attach without source and target, then a detach. Otherwise the attach has
	// both, so that a client first believes that it is attached. Which one a client sees decides what it makes of an error.
	NullAttachRefusals bool
	// StrictPositions refuses receivers that want to start after a sequence number or offset that was not reached yet.
	// Otherwise they wait for it (a sequence number) or begin at the end (an offset).
	StrictPositions bool
}

// Rights are what the holder of a token may do.
type Rights uint8

// The rights that the broker knows. Either of them allows to ask for properties.
const (
	RightListen Rights = 1 << iota
	RightSend
)

// Policy is a shared access policy. Its rights hold for all hubs.
type Policy struct {
	Name, Key string
	// Rights are the rights of whoever has the key. Zero: all.
	Rights Rights
}

// JWT says which bearer tokens are accepted: those with an RS256 signature by one of the keys, from the issuer, for the audience.
// Whoever has one may do everything.
type JWT struct {
	Keys             map[string]crypto.PublicKey // by key id
	Issuer, Audience string
}

// DefaultPolicy is the name of the policy that a broker has if no others are given.
const DefaultPolicy = "RootManageSharedAccessKey"

func (o Options) withDefaults() Options {
	if o.Addr == "" {
		o.Addr = "127.0.0.1:0"
	}
	if len(o.Policies) == 0 {
		key := make([]byte, 32)
		_, _ = rand.Read(key) // never fails: see its documentation
		o.Policies = []Policy{{Name: DefaultPolicy, Key: base64.StdEncoding.EncodeToString(key)}}
	}
	o.IdleTimeout = orDefault(o.IdleTimeout, time.Minute)
	o.MaxEvents = orDefault(o.MaxEvents, 1<<20)
	o.MaxBytes = orDefault(o.MaxBytes, 128<<20)
	o.MaxMessageSize = orDefault(o.MaxMessageSize, 1<<20)
	return o
}

func orDefault[T ~int | ~int64](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

// TB is what Run needs of a test.
type TB interface {
	Helper()
	Context() context.Context
	Cleanup(func())
	Fatalf(format string, args ...any)
}
