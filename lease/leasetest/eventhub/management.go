package eventhub

import (
	"net/http"
	"strconv"
)

// manage answers READ: the properties of a hub or of a partition.
func (c *conn) manage(r *request) response {
	b := c.broker
	if f := b.faults.busy(); f != nil {
		return refused(http.StatusServiceUnavailable, f.String())
	}
	if op := r.property("operation"); op != "READ" {
		return refused(http.StatusBadRequest, "the operation "+strconv.Quote(op)+" is not known")
	}
	name := r.property("name")
	// The token comes with each request. What the connection claimed counts for links only.
	if _, err := b.verify(r.property("security_token"), "", name, c.hostname); err != nil {
		return refused(http.StatusUnauthorized, err.Error())
	}
	h, err := b.hub(name)
	if err != nil {
		return refused(http.StatusNotFound, err.Error())
	}
	switch kind := r.property("type"); kind {
	case "com.microsoft:eventhub":
		return response{http.StatusOK, "OK", h.describe()}
	case "com.microsoft:partition":
		id := r.property("partition")
		p := h.partition(id)
		if p == nil {
			return refused(http.StatusNotFound, "the hub "+strconv.Quote(h.name)+" has no partition "+strconv.Quote(id))
		}
		return response{http.StatusOK, "OK", p.describe()}
	default:
		return refused(http.StatusBadRequest, "the type "+strconv.Quote(kind)+" is not known")
	}
}

func (h *hub) describe() map[string]any {
	ids := []string{}
	for _, p := range h.all("") {
		ids = append(ids, p.id)
	}
	return map[string]any{
		"name": h.name, "type": "com.microsoft:eventhub", "created_at": h.created,
		"partition_count": int32(len(ids)), //nolint:gosec // at most maxPartitions
		"partition_ids":   ids, "georeplication_factor": int32(1),
	}
}

func (p *partition) describe() map[string]any {
	props := p.properties()
	return map[string]any{
		"name": p.hub.name, "type": "com.microsoft:partition", "partition": p.id,
		"begin_sequence_number": props.First, "last_enqueued_sequence_number": props.Last,
		"last_enqueued_offset": props.LastOffset, "last_enqueued_time_utc": props.LastEnqueued,
		"is_partition_empty": props.Empty,
	}
}
