// Package eventhubs leases events from an Azure event hub, and keeps what it needs for that in an Azure Storage account.
//
// An event hub is a log: nothing in it is ever taken, and it knows of no leases. Package partitioned makes a queue of such a log;
// this package gives it the log, the checkpoints and the place for poisoned events. How the service's words map to ours:
//
//	owner level    (epoch) is the number of our term of leadership: a reader with a higher one takes the partition, and ours then
//	               fails with amqp:link:stolen, which is partitioned.ErrOwned
//	link credit    is how many events the service may send: never more than partitioned.Reader.Read was asked for
//	window         the events since the checkpoint, kept in memory, from which leases are handed out
//	checkpoint     an empty blob with metadata for each partition: all up to that event is settled
//	ETag           the checkpoint's version, which fences it: it is only ever written with If-Match, or If-None-Match: *
//	Extend         reads or writes the checkpoint, and so proves that nobody else has written it
//
// To complete an event is to note it in the window. Once all the events before it are settled too, the checkpoint moves past
// them, with one request for many events. What a crash, or a new leader, reads again are the events behind the checkpoint: those that were
// not settled, and of those that were the last second's, and all that wait for a slower one before them. They keep the same id,
// <partition>/<sequence number>/<time of enqueueing in ms>, so that their Jobs are found to exist.
//
// The checkpoints are where the SDKs for Event Hubs keep theirs, in the same form, so that a program can go on where another left off, and
// whatever measures the lag of a consumer group measures ours. Nobody else may read in the name of the same consumer group at the
// same time: a reader without owner level is refused while we read.
//
// Poisoned events go to a Storage Queue of the same account, in an Envelope, or to another event hub.
//
// All goes over one AMQP connection, and another one to a poison event hub. The SDK makes a lost connection anew with the next
// call; how often to try is decided by package partitioned.
//
// Start reading at hub.go and reader.go, then checkpoints.go, then poison_queue.go.
package eventhubs
