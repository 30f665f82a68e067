package redisstreams

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/lighterman-dev/lighterman/lease"
)

const (
	// Where Redis does not know how many entries a group has yet to read, they are counted, up to countMost entries or
	// countBytes of payload. Beyond that an estimate does: the exact figure matters only when little is left.
	countPage  = 100
	countMost  = 1000
	countBytes = 1 << 20
)

// groupInfo is what XINFO GROUPS tells about our group. go-redis reads an absent lag (Redis 6.2) as 0, and would have us
// believe that nothing is waiting, so the answer is read here.
type groupInfo struct {
	pending int64
	lag     int64 // -1: unknown
	lastID  string
}

func (s *Source) backlog(ctx context.Context) (lease.Backlog, error) {
	var info, length *redis.Cmd
	_, err := s.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		info = p.Do(ctx, "XINFO", "GROUPS", s.stream)
		length = p.Do(ctx, "XLEN", s.stream)
		return nil
	})
	if noKey(err) {
		return lease.Backlog{}, nil
	}
	if err != nil {
		return lease.Backlog{}, err
	}
	entries, err := length.Int64()
	if err != nil {
		return lease.Backlog{}, err
	}
	groups, err := info.Slice()
	if err != nil {
		return lease.Backlog{}, err
	}
	group, found := findGroup(groups, s.group)
	if !found {
		return lease.Backlog{Messages: entries}, nil
	}
	unread := min(group.lag, entries) // Redis 7.0 counts trimmed entries in
	if group.lag < 0 {
		if unread, err = s.countUnread(ctx, group, entries); err != nil {
			return lease.Backlog{}, err
		}
	}
	return lease.Backlog{Messages: unread + group.pending, Leased: group.pending}, nil
}

// countUnread counts the entries that the group has yet to read. Redis loses count whenever the last entry that the group
// read was deleted, which is what completing does, so this is an everyday case.
func (s *Source) countUnread(ctx context.Context, group groupInfo, entries int64) (int64, error) {
	// No more than this: of what the stream holds, what is pending has been read. Pending entries that were deleted
	// from the stream make it too low, so it serves only once the count has to be given up.
	atMost := max(entries-group.pending, 0)
	if entries == 0 {
		return 0, nil
	}
	var counted, size int64
	for start := "(" + group.lastID; ; {
		page, err := s.client.XRangeN(ctx, s.stream, start, "+", countPage).Result()
		if err != nil {
			return 0, err
		}
		counted += int64(len(page))
		if len(page) < countPage {
			return counted, nil
		}
		for _, entry := range page {
			for name, value := range entry.Values {
				text, _ := value.(string)
				size += int64(len(name) + len(text))
			}
		}
		if counted >= countMost || size >= countBytes {
			return max(counted, atMost), nil
		}
		start = "(" + page[len(page)-1].ID
	}
}

// findGroup finds a group in the answer of XINFO GROUPS, which is a list of maps (protocol 3) or of lists (protocol 2).
func findGroup(groups []any, name string) (groupInfo, bool) {
	for _, g := range groups {
		fields := map[string]any{}
		switch g := g.(type) {
		case map[any]any:
			for k, v := range g {
				if key, isText := k.(string); isText {
					fields[key] = v
				}
			}
		case []any:
			for i := 0; i+1 < len(g); i += 2 {
				if key, isText := g[i].(string); isText {
					fields[key] = g[i+1]
				}
			}
		}
		if fields["name"] != name {
			continue
		}
		info := groupInfo{lag: -1}
		info.pending, _ = fields["pending"].(int64)
		info.lastID, _ = fields["last-delivered-id"].(string)
		// A lag without the number of entries read is an estimate at best.
		if _, known := fields["entries-read"].(int64); known {
			if lag, known := fields["lag"].(int64); known {
				info.lag = lag
			}
		}
		return info, true
	}
	return groupInfo{}, false
}
