package eventhubs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/Azure/go-amqp"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

// rpcError is like the SDK's own, which it does not export.
type rpcError int

func (e rpcError) Error() string {
	return fmt.Sprintf("rpc: failed, status code %d and description: \nlines", int(e))
}
func (e rpcError) RPCCode() int { return int(e) }

func TestClassification(t *testing.T) {
	amqpError := func(condition, text string) error {
		return &amqp.Error{Condition: amqp.ErrCond(condition), Description: text}
	}
	for name, test := range map[string]struct {
		err  error
		want error
		says string
		wait time.Duration
	}{
		"hub":            {amqpError("amqp:not-found", "no entity"), lease.ErrNotFound, `create event hub "orders"`, 0},
		"group":          {amqpError("amqp:not-found", "sb://x/orders/ConsumerGroups/mine"), lease.ErrNotFound, `create consumer group "mine"`, 0},
		"by request":     {fmt.Errorf("asking: %w", rpcError(404)), lease.ErrNotFound, "create event hub", 0},
		"key":            {amqpError("amqp:unauthorized-access", ""), lease.ErrUnauthorized, "check the connection string", 0},
		"401":            {rpcError(401), lease.ErrUnauthorized, "status code 401", 0},
		"of the SDK":     {&azeventhubs.Error{Code: azeventhubs.ErrorCodeUnauthorizedAccess}, lease.ErrUnauthorized, "check", 0},
		"busy":           {amqpError("com.microsoft:server-busy", "Please wait 4 seconds and try again."), lease.ErrThrottled, "wait 4 seconds", 4 * time.Second},
		"quota":          {amqpError("amqp:resource-limit-exceeded", "quota"), lease.ErrThrottled, "quota", 0},
		"503":            {rpcError(503), lease.ErrThrottled, "503", 0},
		"stolen":         {&amqp.LinkError{RemoteErr: &amqp.Error{Condition: "amqp:link:stolen"}}, partitioned.ErrOwned, "amqp:link:stolen", 0},
		"stolen, raw":    {amqpError("amqp:link:stolen", "New receiver"), partitioned.ErrOwned, "New receiver", 0},
		"stolen, by SDK": {&azeventhubs.Error{Code: azeventhubs.ErrorCodeOwnershipLost}, partitioned.ErrOwned, "another reader", 0},
		"disabled":       {amqpError("com.microsoft:entity-disabled", ""), lease.ErrInvalid, "enable event hub", 0},
		"argument":       {amqpError("com.microsoft:argument-error", "bad"), lease.ErrInvalid, "check the names", 0},
		"range":          {amqpError("com.microsoft:argument-out-of-range", "bad"), lease.ErrInvalid, "check the names", 0},
		"given up":       {fmt.Errorf("x: %w", context.Canceled), context.Canceled, "canceled", 0},
		"too late":       {fmt.Errorf("x: %w", context.DeadlineExceeded), context.DeadlineExceeded, "deadline", 0},
		"anything else":  {errors.New("EOF\nand more"), nil, "EOF and more; check that ns.servicebus.windows.net can be reached", 0},
	} {
		t.Run(name, func(t *testing.T) {
			n := namespace{host: "ns.servicebus.windows.net", secret: "s3cret"}
			got := n.wrap("testing", "orders", "mine", fmt.Errorf("s3cret: %w", test.err))
			if test.want != nil && !errors.Is(got, test.want) {
				t.Errorf("%v is not %v", got, test.want)
			}
			if test.want == nil && lease.Class(got) != "other" {
				t.Errorf("%v is of class %s", got, lease.Class(got))
			}
			if s := got.Error(); !strings.HasPrefix(s, "testing: ") || !strings.Contains(s, test.says) || strings.Contains(s, "\n") || strings.Contains(s, "s3cret") {
				t.Errorf("%q; want it to say %q, in one line, without secrets", s, test.says)
			}
			if got := lease.RetryAfter(got); got != test.wait {
				t.Errorf("it asks to wait for %s, want %s", got, test.wait)
			}
		})
	}
}

// TestHiddenCondition: for links that were lost the SDK hides what the service said, but for the text.
func TestHiddenCondition(t *testing.T) {
	inner := &amqp.Error{Condition: "amqp:not-found", Description: "gone,\nreally", Info: map[string]any{"a": "b"}}
	condition, text := explain(fmt.Errorf("(connlost): %w", errors.New(inner.Error())))
	if condition != "amqp:not-found" || text != "amqp:not-found: gone, really" {
		t.Errorf("explain = %q, %q", condition, text)
	}
}

func TestStorageClassification(t *testing.T) {
	for name, test := range map[string]struct {
		status int
		code   string
		want   error
		says   string
	}{
		"key":      {403, "AuthenticationFailed", lease.ErrUnauthorized, "check the checkpoint connection string"},
		"busy":     {503, "ServerBusy", lease.ErrThrottled, "ServerBusy"},
		"name":     {400, "InvalidResourceName", lease.ErrInvalid, "check the names"},
		"disabled": {409, "AccountIsDisabled", lease.ErrInvalid, "enable the storage account"},
	} {
		t.Run(name, func(t *testing.T) {
			header := http.Header{"Retry-After": {"3"}}
			err := wrapStorage("testing", &azcore.ResponseError{
				StatusCode: test.status, ErrorCode: test.code, RawResponse: &http.Response{StatusCode: test.status, Header: header},
			})
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) || lease.RetryAfter(err) != 3*time.Second {
				t.Errorf("%v, and to wait for %s", err, lease.RetryAfter(err))
			}
		})
	}
}
