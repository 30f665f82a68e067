package eventhubs

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest/eventhub"
	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
)

const (
	benchPartitions = 8
	benchEvents     = 400_000 // in all partitions
	benchLimit      = 10_000  // what a Receive asks for: what a dispatcher does that has slots for as many
	benchCredit     = benchLimit / benchPartitions
)

// benchHub makes a hub with events of 100 bytes and one property, and stops the time meanwhile.
func benchHub(b *testing.B, broker *eventhub.Broker, hub string) {
	b.Helper()
	must(b, broker.CreateHub(hub, benchPartitions))
	body := []byte(strings.Repeat("x", 100))
	batch := make([]eventhub.Event, 1000)
	for i := range batch {
		batch[i] = eventhub.Event{Body: body, Properties: map[string]any{"kind": "order"}}
	}
	for i := range benchEvents / len(batch) {
		must(b, broker.Send(hub, strconv.Itoa(i%benchPartitions), batch...))
	}
}

// BenchmarkPassThrough is how many events a second pass through receive, window and checkpoint of one source, without Jobs, beside what a bare loop over
// the SDK's ReceiveEvents gets from the same broker with the same credit. Broker, client and Azurite share the machine's processors.
//
//	bare-events/s, events/s, ratio   of the two, in turns
//	writes/1000-events               requests that write a checkpoint
//	%cpu-of-bare                     processor time of this process for each event, relative to the bare loop (the broker's is in both)
func BenchmarkPassThrough(b *testing.B) {
	broker := eventhub.Run(b, eventhub.Options{MaxEvents: benchEvents})
	azurite := servers.RunAzurite(b, servers.AzuriteOptions{Blob: true, InMemory: true})
	connection, writes := countWrites(b, azurite)
	benchHub(b, broker, "hub")
	var bare, ours, bareCPU, oursCPU time.Duration
	n := 0
	for b.Loop() {
		n++
		took, cpu := measured(b, func() { bareLoop(b, broker, "hub") })
		bare, bareCPU = bare+took, bareCPU+cpu
		s := newSource(b, Config{
			ConnectionString: broker.ConnectionString(), EventHub: "hub", CheckpointContainer: fmt.Sprintf("run-%d", n), PoisonQueue: "poison",
			CheckpointConnectionString: connection, LeaseDuration: time.Minute, Level: int64(n),
		})
		must(b, s.Check(b.Context()))
		took, cpu = measured(b, func() { passThrough(b, s) })
		ours, oursCPU = ours+took, oursCPU+cpu
		must(b, s.Close())
	}
	events := float64(n * benchEvents)
	b.ReportMetric(events/bare.Seconds(), "bare-events/s")
	b.ReportMetric(events/ours.Seconds(), "events/s")
	b.ReportMetric(bare.Seconds()/ours.Seconds(), "ratio")
	b.ReportMetric(100*oursCPU.Seconds()/bareCPU.Seconds(), "%cpu-of-bare")
	b.ReportMetric(1000*float64(writes.Load())/events, "writes/1000-events")
	b.ReportMetric(0, "ns/op")
}

// measured is how long something takes, and how much processor time of this process.
func measured(b *testing.B, do func()) (took, cpu time.Duration) {
	b.Helper()
	runtime.GC()
	began, before := time.Now(), processorTime(b)
	do()
	return time.Since(began), processorTime(b) - before
}

func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// bareLoop receives all events of a hub as a program would that has nothing to do with them.
func bareLoop(b *testing.B, broker *eventhub.Broker, hub string) {
	b.Helper()
	client, err := azeventhubs.NewConsumerClientFromConnectionString(broker.ConnectionString(), hub, azeventhubs.DefaultConsumerGroup, nil)
	must(b, err)
	var receiving sync.WaitGroup
	for p := range benchPartitions {
		receiving.Go(func() {
			partition, err := client.NewPartitionClient(strconv.Itoa(p), &azeventhubs.PartitionClientOptions{
				StartPosition: azeventhubs.StartPosition{Earliest: to.Ptr(true)}, Prefetch: benchCredit, OwnerLevel: to.Ptr(int64(0)),
			})
			if err != nil {
				b.Error(err)
				return
			}
			for n := 0; n < benchEvents/benchPartitions; {
				events, err := partition.ReceiveEvents(b.Context(), min(benchCredit, benchEvents/benchPartitions-n), nil)
				if err != nil {
					b.Error(err)
					return
				}
				n += len(events)
			}
			if err := partition.Close(b.Context()); err != nil {
				b.Error(err)
			}
		})
	}
	receiving.Wait()
	must(b, client.Close(b.Context()))
}

// passThrough receives and completes all events, and returns when the checkpoints have passed them.
func passThrough(b *testing.B, s lease.Source) {
	b.Helper()
	confirmer := s.(lease.Confirmer)
	var confirming sync.WaitGroup
	confirming.Go(func() {
		for n := 0; n < benchEvents; {
			some, err := confirmer.Confirmed(b.Context())
			if err != nil {
				b.Error(err)
				return
			}
			n += len(some)
		}
	})
	for n := 0; n < benchEvents; {
		leases, err := s.Receive(b.Context(), benchLimit)
		must(b, err)
		for _, err := range s.Complete(b.Context(), leases) {
			must(b, err)
		}
		n += len(leases)
	}
	must(b, confirmer.Flush(b.Context()))
	confirming.Wait()
}

// countWrites has the requests that write checkpoints counted on their way to Azurite.
func countWrites(b *testing.B, azurite *servers.Azurite) (connection string, writes *atomic.Int64) {
	b.Helper()
	blobs, err := url.Parse(azurite.BlobEndpoint())
	must(b, err)
	writes = new(atomic.Int64)
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: blobs.Host})
	proxy.Transport = &http.Transport{MaxIdleConnsPerHost: 64}
	address := serve(b, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/checkpoint/") {
			writes.Add(1)
		}
		r.Host = blobs.Host // it is signed
		proxy.ServeHTTP(w, r)
	}))
	return strings.Replace(azurite.ConnectionString(), blobs.Host, address, 1), writes
}

// BenchmarkInFlight is how much memory an event takes that is in flight, beside its body.
func BenchmarkInFlight(b *testing.B) {
	broker := eventhub.Run(b, eventhub.Options{MaxEvents: benchEvents})
	azurite := servers.RunAzurite(b, servers.AzuriteOptions{Blob: true, InMemory: true})
	benchHub(b, broker, "hub")
	var bytes float64
	level := int64(0)
	for b.Loop() {
		level++
		s := newSource(b, Config{
			ConnectionString: broker.ConnectionString(), EventHub: "hub", PoisonQueue: "poison",
			CheckpointConnectionString: azurite.ConnectionString(), LeaseDuration: time.Hour, Level: level,
		})
		must(b, s.Check(b.Context()))
		before := heap()
		var held []*lease.Lease
		for len(held) < benchEvents {
			leases, err := s.Receive(b.Context(), benchLimit)
			must(b, err)
			held = append(held, leases...)
		}
		after := heap()
		bytes = float64(after-before)/float64(len(held)) - float64(len(held[0].Body))
		runtime.KeepAlive(held)
		must(b, s.Close())
	}
	b.ReportMetric(bytes, "B/event-in-flight")
	b.ReportMetric(0, "ns/op")
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// serve serves HTTP on a free port of the loopback until the benchmark ends.
func serve(b *testing.B, h http.Handler) (address string) {
	b.Helper()
	listener, err := new(net.ListenConfig).Listen(b.Context(), "tcp", "127.0.0.1:0")
	must(b, err)
	server := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	b.Cleanup(func() {
		must(b, server.Shutdown(context.WithoutCancel(b.Context())))
		<-done
	})
	return listener.Addr().String()
}
