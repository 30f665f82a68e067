package dispatcher

import (
	"regexp"
	"strings"

	"github.com/lighterman-dev/lighterman/lease"
)

// traceParentForm is version 00 of the header in W3C Trace Context, and what later versions begin with.
var traceParentForm = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// traceParent is what a message's producer says of the trace that it belongs to; empty where that is nothing, or not of the form: the task would
// have to begin a trace of its own then.
func traceParent(held *lease.Lease) string {
	for name, value := range held.Properties {
		if strings.EqualFold(name, "traceparent") && traceParentForm.MatchString(value) && !strings.HasPrefix(value, "ff") &&
			!strings.Contains(value, "-00000000000000000000000000000000-") && !strings.Contains(value, "-0000000000000000-") {
			return value
		}
	}
	return ""
}
