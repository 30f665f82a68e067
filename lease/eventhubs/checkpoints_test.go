package eventhubs

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	sdk "github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2/checkpoints"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/google/go-cmp/cmp"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

func TestCheckpoints(t *testing.T) {
	azurite := servers.RunAzurite(t, servers.AzuriteOptions{Blob: true, InMemory: true})
	config := func() Config {
		return Config{
			ConnectionString: hubs, EventHub: unique("Hub"), PoisonQueue: "poison", CheckpointConnectionString: azurite.ConnectionString(), CheckpointContainer: unique("container"),
		}
	}
	open := func(t *testing.T) (*checkpoints, storage, settings) {
		t.Helper()
		s, err := config().settings()
		must(t, err)
		return openCheckpoints(t, s), newStorage(t, s), s
	}
	some := partitioned.Checkpoint{Sequence: 41, Offset: "4100", Owner: "me"}

	t.Run("are made and moved", func(t *testing.T) {
		c, _, _ := open(t)
		must(t, c.Check(t.Context()))
		must(t, c.Check(t.Context()))
		if s, err := c.Load(t.Context(), "0"); err != nil || s != (partitioned.Stored{}) {
			t.Errorf("Load = %+v, %v; want nothing", s, err)
		}
		version, err := c.Store(t.Context(), "0", some, "")
		must(t, err)
		s, err := c.Load(t.Context(), "0")
		must(t, err)
		if s.Checkpoint != some || s.Version != version || time.Since(s.WrittenAt).Abs() > time.Minute {
			t.Errorf("Load = %+v, want %+v of version %s", s, some, version)
		}
		next := partitioned.Checkpoint{Sequence: -1, Offset: partitioned.NoOffset, Owner: "you"}
		later, err := c.Store(t.Context(), "0", next, version)
		must(t, err)
		if s, err := c.Load(t.Context(), "0"); err != nil || s.Checkpoint != next || s.Version != later || later == version {
			t.Errorf("Load = %+v, %v; want %+v of version %s", s, err, next, later)
		}
		for name, stale := range map[string]string{"old": version, "made up": `"0x1"`, "none": ""} {
			if _, err := c.Store(t.Context(), "0", some, stale); !errors.Is(err, partitioned.ErrChanged) {
				t.Errorf("Store over the %s version: %v, want partitioned.ErrChanged", name, err)
			}
		}
		if _, err := c.Store(t.Context(), "1", some, version); !errors.Is(err, partitioned.ErrChanged) {
			t.Errorf("Store where there is no blob any more: %v, want partitioned.ErrChanged", err)
		}
	})

	t.Run("only one of many writes", func(t *testing.T) {
		c, _, _ := open(t)
		must(t, c.Check(t.Context()))
		version := ""
		for range 3 {
			var wg sync.WaitGroup
			var mu sync.Mutex
			var won []string
			for range 8 {
				wg.Go(func() {
					v, err := c.Store(t.Context(), "0", some, version)
					mu.Lock()
					defer mu.Unlock()
					if err == nil {
						won = append(won, v)
					} else if !errors.Is(err, partitioned.ErrChanged) {
						t.Errorf("Store: %v, want partitioned.ErrChanged", err)
					}
				})
			}
			wg.Wait()
			if len(won) != 1 {
				t.Fatalf("%d wrote, want one", len(won))
			}
			version = won[0]
		}
	})

	t.Run("the container is made anew", func(t *testing.T) {
		c, people, _ := open(t)
		version, err := c.Store(t.Context(), "0", some, "")
		must(t, err)
		_, err = people.container.Delete(t.Context(), nil)
		must(t, err)
		if s, err := c.Load(t.Context(), "0"); err != nil || s.Version != "" {
			t.Errorf("Load = %+v, %v; want nothing", s, err)
		}
		if _, err := c.Store(t.Context(), "0", some, version); !errors.Is(err, partitioned.ErrChanged) {
			t.Errorf("Store over the version that was there: %v, want partitioned.ErrChanged", err)
		}
		_, err = c.Store(t.Context(), "0", some, "")
		must(t, err)
	})

	t.Run("are read by the SDK, and the SDK's by us", func(t *testing.T) {
		c, people, s := open(t)
		_, err := c.Store(t.Context(), "3", some, "")
		must(t, err)
		store, err := sdk.NewBlobStore(people.container, nil)
		must(t, err)
		hub, group := strings.ToLower(s.EventHub), "$default"
		listed, err := store.ListCheckpoints(t.Context(), "ns.servicebus.windows.net", hub, group, nil)
		must(t, err)
		if len(listed) != 1 || listed[0].PartitionID != "3" || *listed[0].SequenceNumber != 41 || *listed[0].Offset != "4100" {
			t.Errorf("the SDK reads %+v", listed)
		}
		sequence, offset := int64(50), "5000"
		theirs := azeventhubs.Checkpoint{
			FullyQualifiedNamespace: "ns.servicebus.windows.net", EventHubName: hub, ConsumerGroup: group, PartitionID: "3",
			SequenceNumber: &sequence, Offset: &offset,
		}
		must(t, store.SetCheckpoint(t.Context(), theirs, nil))
		got, err := c.Load(t.Context(), "3")
		must(t, err)
		if want := (partitioned.Checkpoint{Sequence: 50, Offset: "5000"}); got.Checkpoint != want {
			t.Errorf("Load = %+v, want %+v of nobody", got, want)
		}
	})

	t.Run("of other programs", func(t *testing.T) {
		c, people, _ := open(t)
		must(t, c.Check(t.Context()))
		for name, test := range map[string]struct {
			metadata map[string]string
			want     partitioned.Checkpoint
			broken   string
		}{
			"capitals":     {map[string]string{"SequenceNumber": "7", "OFFSET": "70"}, partitioned.Checkpoint{Sequence: 7, Offset: "70"}, ""},
			"more":         {map[string]string{"sequencenumber": "7", "offset": "70", "clientid": "x"}, partitioned.Checkpoint{Sequence: 7, Offset: "70"}, ""},
			"no offset":    {map[string]string{"sequencenumber": "7"}, partitioned.Checkpoint{Sequence: 7}, ""},
			"no sequence":  {map[string]string{"offset": "70"}, partitioned.Checkpoint{}, "no sequencenumber"},
			"no metadata":  {nil, partitioned.Checkpoint{}, "no sequencenumber"},
			"not a number": {map[string]string{"sequencenumber": "seven"}, partitioned.Checkpoint{}, "no number"},
		} {
			partition := strings.ReplaceAll(name, " ", "-")
			metadata := map[string]*string{}
			for k, v := range test.metadata {
				metadata[k] = &v
			}
			_, err := people.container.NewBlockBlobClient(c.prefix+partition).UploadBuffer(t.Context(), nil, &blockblob.UploadBufferOptions{Metadata: metadata})
			must(t, err)
			got, err := c.Load(t.Context(), partition)
			if test.broken != "" {
				if !errors.Is(err, lease.ErrInvalid) || !strings.Contains(err.Error(), c.prefix+partition) || !strings.Contains(err.Error(), test.broken) {
					t.Errorf("%s: %v, want it to name the blob and %q", name, err, test.broken)
				}
				continue
			}
			must(t, err)
			if diff := cmp.Diff(got.Checkpoint, test.want); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
	})

	t.Run("fail with reasons", func(t *testing.T) {
		cfg := config()
		cfg.CheckpointConnectionString = strings.Replace(azurite.ConnectionString(), servers.AzuriteKey, key, 1)
		s, err := cfg.settings()
		must(t, err)
		c := openCheckpoints(t, s)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		for what, err := range map[string]error{
			"Check": c.Check(t.Context()),
			"Load":  second(c.Load(t.Context(), "0")),
			"Store": second(c.Store(t.Context(), "0", some, "")),
		} {
			if !errors.Is(err, lease.ErrUnauthorized) || !strings.Contains(err.Error(), cfg.CheckpointContainer) ||
				strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), key) || !strings.Contains(err.Error(), "check the checkpoint connection string") {
				t.Errorf("%s: %v", what, err)
			}
		}
		if err := c.Check(ended); !errors.Is(err, context.Canceled) {
			t.Errorf("Check: %v, want context.Canceled", err)
		}
	})
}

func second[T any](_ T, err error) error { return err }
