package redisstreams

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
)

// TestPoisonManyFields poisons messages with more fields than a script can pass to a command.
func TestPoisonManyFields(t *testing.T) {
	server := servers.RunRedis(t, servers.RedisOptions{})

	// fields are names and values, some names twice, and not all of it text.
	fields := func(n int) []any {
		var all []any
		for i := range n {
			all = append(all, fmt.Sprintf("f%d", i-i%7), fmt.Sprintf("\x00\xff\r\n%d", i))
		}
		return all
	}
	add := func(t *testing.T, client *redis.Client, stream string, fields []any) {
		t.Helper()
		if err := client.Do(t.Context(), append([]any{"XADD", stream, "*"}, fields...)...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	// content is the fields of a stream's entries, in their order.
	content := func(t *testing.T, client *redis.Client, stream string) [][]any {
		t.Helper()
		entries, err := client.Do(t.Context(), "XRANGE", stream, "-", "+").Slice()
		if err != nil {
			t.Fatal(err)
		}
		var all [][]any
		for _, e := range entries {
			all = append(all, e.([]any)[1].([]any))
		}
		return all
	}
	sizes := []int{1, maxWords/2 - 1, maxWords / 2, maxWords/2 + 1, 2, 3990, 4500, 3, 50000}

	t.Run("moved unchanged, and the others with them", func(t *testing.T) {
		for _, groups := range []int{1, 2} {
			stream := fmt.Sprint("large-", groups)
			s, client := onRedis(t, server, stream, time.Hour)
			for _, n := range sizes {
				add(t, client, stream, fields(n))
			}
			if groups == 2 {
				if err := client.XGroupCreate(t.Context(), stream, "other", "0").Err(); err != nil {
					t.Fatal(err)
				}
			}
			var poisoned []lease.Poisoned
			for _, l := range receiveAll(t, s, len(sizes)) {
				poisoned = append(poisoned, lease.Poisoned{Lease: l, Reason: "a reason", Attempts: 3, Job: "job"})
			}
			if errs := s.Poison(t.Context(), poisoned); errs != nil {
				t.Fatal(errors.Join(errs...))
			}
			found := map[string]bool{}
			for _, got := range content(t, client, stream+":poison") {
				n := len(got)/2 - 4
				want := append(fields(n), "lighterman-id", got[len(got)-7], "lighterman-reason", "a reason",
					"lighterman-attempts", "3", "lighterman-job", "job")
				if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
					t.Errorf("the copy of the message with %d fields is not like it", n)
				}
				found[got[len(got)-7].(string)] = true
			}
			for i, p := range poisoned {
				if !found[p.Lease.ID] {
					t.Errorf("no copy of the message with %d fields", sizes[i])
				}
				if p.Lease.Receipt != "" {
					t.Errorf("the lease of the message with %d fields is not spent", sizes[i])
				}
			}
			if len(found) != len(sizes) {
				t.Errorf("%d copies, want %d", len(found), len(sizes))
			}
			wantBacklog(t, s, lease.Backlog{})
			if got, want := len(content(t, client, stream)), (groups-1)*len(sizes); got != want {
				t.Errorf("%d groups: the stream holds %d entries, want %d", groups, got, want)
			}
		}
	})

	// large is a stream with one message of many fields, and its lease.
	large := func(t *testing.T, stream string) (*Source, *redis.Client, lease.Poisoned) {
		t.Helper()
		s, client := onRedis(t, server, stream, time.Hour)
		add(t, client, stream, fields(4500))
		return s, client, lease.Poisoned{Lease: receiveAll(t, s, 1)[0], Reason: "a reason"}
	}

	// Each loses the lease in its own way, after poisonScript saw it.
	for name, lose := range map[string]func(context.Context, *redis.Client, *Source, string, string) error{
		"another consumer has it": func(ctx context.Context, client *redis.Client, s *Source, stream, id string) error {
			return client.XClaim(ctx, &redis.XClaimArgs{Stream: stream, Group: s.group, Consumer: "other", Messages: []string{id}}).Err()
		},
		"a later lease of ours": func(ctx context.Context, client *redis.Client, s *Source, stream, id string) error {
			return client.XClaim(ctx, &redis.XClaimArgs{Stream: stream, Group: s.group, Consumer: s.consumer, Messages: []string{id}}).Err()
		},
		"the group is gone": func(ctx context.Context, client *redis.Client, s *Source, stream, _ string) error {
			return client.XGroupDestroy(ctx, stream, s.group).Err()
		},
		"the entry is gone": func(ctx context.Context, client *redis.Client, _ *Source, stream, id string) error {
			return client.XDel(ctx, stream, id).Err()
		},
	} {
		t.Run("nothing is changed when "+name, func(t *testing.T) {
			stream := "lost " + name
			s, client, p := large(t, stream)
			earlier := []any{"somebody", "else's", "lighterman-id", "7-7", "lighterman-reason", "", "lighterman-attempts", "0", "lighterman-job", ""}
			add(t, client, stream+":poison", earlier)
			if err := lose(t.Context(), client, s, stream, p.Lease.ID); err != nil {
				t.Fatal(err)
			}
			before := content(t, client, stream)
			if err := s.poisonLarge(t.Context(), p); !errors.Is(err, lease.ErrLost) {
				t.Errorf("poisonLarge: %v, want lease.ErrLost", err)
			}
			if got := content(t, client, stream+":poison"); len(got) != 1 || fmt.Sprint(got[0]) != fmt.Sprint(earlier) {
				t.Errorf("the poison stream holds %d entries, want the earlier one alone", len(got))
			}
			if got := content(t, client, stream); len(got) != len(before) {
				t.Errorf("the stream holds %d entries, want %d", len(got), len(before))
			}
		})
	}

	t.Run("the entry stays when it cannot be copied", func(t *testing.T) {
		s, client, p := large(t, "uncopied")
		if err := client.Set(t.Context(), "uncopied:poison", "not a stream", 0).Err(); err != nil {
			t.Fatal(err)
		}
		if errs := s.Poison(t.Context(), []lease.Poisoned{p}); len(errs) != 1 || !errors.Is(errs[0], lease.ErrInvalid) {
			t.Errorf("Poison = %v, want lease.ErrInvalid", errs)
		}
		wantBacklog(t, s, lease.Backlog{Messages: 1, Leased: 1})
		if errs := s.Extend(t.Context(), []*lease.Lease{p.Lease}); errs != nil {
			t.Errorf("Extend = %v; want the lease to be held still", errs)
		}
	})
}
