// Package eventhub is a broker for tests and demos that speaks AMQP 1.0 as Azure Event Hubs does, in the process that uses it. The
// azeventhubs client of Azure's SDK talks to it unchanged, over TCP or TLS.
//
//	b := eventhub.Run(t, eventhub.Options{})
//	b.CreateHub("orders", 4)
//	client, err := azeventhubs.NewConsumerClientFromConnectionString(b.ConnectionString(), "orders", "$Default", nil)
//
// # What it does
//
// Hubs have partitions and consumer groups. A partition is a log in memory, bounded in events and in bytes: the oldest go first, and
// with them the beginning sequence number rises, as with retention. Sequence numbers count from 0, also in a hub that was deleted and
// made again. Receivers start at an offset, a sequence number or a time, and have epochs: one with an epoch disconnects those with
// the same epoch, a lower one or none, which are told amqp:link:stolen; one with a lower epoch, or without, is refused while one
// with a higher is there. Senders send events and batches to a partition, by partition key, or to the partitions in turn.
//
// Tokens are checked for real: shared access signatures against the keys of policies, bearer tokens against public keys. A link needs a
// claim that covers its address and that did not expire when it attached.
//
// Whatever can go wrong with the service can be made to go wrong here, while it runs: see the methods in faults.go, and Stop and
// Restart, which keep hubs and events.
//
// # What it does not
//
// It keeps nothing on disk, has no capture, schemas, geo-replication, WebSockets or transactions, and detaches no link when its claim
// expires. Limits of throughput are those of the machine. Where the service's own behaviour is not known for sure, options choose:
// NullAttachRefusals and StrictPositions.
//
// # How it works
//
// Numbers in comments are sections of the AMQP 1.0 specification (OASIS). From the wire to a partition:
//
//	frame.go                      frames, and the limits of their sizes
//	wire_*.go                     types and performatives, in and out; what unfolds is bounded in depth and number
//	handshake.go                  TLS, SASL, open
//	conn.go, write.go             the two goroutines of a connection: one reads and acts, one gathers frames and writes
//	session.go, link.go           windows, credit, transfers to receivers
//	attach.go, receiver.go        what a link is attached to, and epochs
//	transfer.go                   what senders send
//	request.go                    $cbs (claims.go, sas.go, jwt.go) and $management (management.go)
//	hub.go, partition.go          the hubs and their logs
//	message.go, position.go       stored events, and where a receiver starts in them
//
// An event is stored as it goes to receivers, so delivering one is a header and a copy. Many transfers go out in one write. A
// receiver that has seen everything waits in its partition, and an append wakes only those: nothing polls.
//
// The lock of a connection guards its sessions and links. Locks are taken in the order connection, hub or partition, inbox. No
// connection takes the lock of another: what it wants of that one (to detach a stolen link, say) goes to its inbox, which the
// other's writer empties.
package eventhub
