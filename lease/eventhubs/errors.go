package eventhubs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azqueue/v2/queueerror"
	"github.com/Azure/go-amqp"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/internal/azstorage"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

// failure is a call to Event Hubs that failed. The SDK's own error is not in its chain.
type failure struct {
	doing  string
	cause  string
	remedy string
	kinds  []error
	wait   time.Duration
}

// Error implements error.
func (f *failure) Error() string {
	s := f.doing + ": "
	for _, kind := range f.kinds {
		if !isContext(kind) { // the cause names these as well
			s += kind.Error() + ": "
		}
	}
	s += f.cause
	if f.remedy != "" {
		s += "; " + f.remedy
	}
	return s
}

// Unwrap gives the class of the error.
func (f *failure) Unwrap() []error { return f.kinds }

// RetryAfter is how long the service asks to wait; zero where it does not say.
func (f *failure) RetryAfter() time.Duration { return f.wait }

// The conditions that the service adds to those of AMQP.
const (
	condServerBusy    amqp.ErrCond = "com.microsoft:server-busy"
	condDisabled      amqp.ErrCond = "com.microsoft:entity-disabled"
	condArgument      amqp.ErrCond = "com.microsoft:argument-error"
	condArgumentRange amqp.ErrCond = "com.microsoft:argument-out-of-range"
	condGeoOffset     amqp.ErrCond = "com.microsoft:georeplication:invalid-offset"
)

// wrap says what failed, and classifies the error. What is concerned is the hub, or with a group that group of it.
func (n namespace) wrap(doing, hub, group string, err error) error {
	if err == nil {
		return nil
	}
	condition, text := explain(err)
	f := &failure{doing: doing, cause: n.scrub(text)}
	if isContext(err) {
		f.kinds = []error{context.DeadlineExceeded}
		if errors.Is(err, context.Canceled) {
			f.kinds = []error{context.Canceled}
		}
		return f
	}
	code := rpcCode(err)
	switch {
	case condition == amqp.ErrCondStolen, isCode(err, azeventhubs.ErrorCodeOwnershipLost):
		f.kinds = []error{partitioned.ErrOwned}
	case condition == amqp.ErrCondNotFound, condition == amqp.ErrCondResourceDeleted, code == http.StatusNotFound:
		f.kinds, f.remedy = []error{lease.ErrNotFound}, "create event hub "+strconv.Quote(hub)+", or correct its name"
		if group != "" && strings.Contains(strings.ToLower(text), "consumergroup") {
			f.remedy = "create consumer group " + strconv.Quote(group) + " of event hub " + strconv.Quote(hub) + ", or correct its name"
		}
	case condition == amqp.ErrCondUnauthorizedAccess, isCode(err, azeventhubs.ErrorCodeUnauthorizedAccess),
		code == http.StatusUnauthorized, code == http.StatusForbidden:
		f.kinds = []error{lease.ErrUnauthorized}
		f.remedy = "check the connection string: its key must be right and not expired, and its policy allow to listen, or, for a poison event hub, to send"
	case condition == condServerBusy, condition == amqp.ErrCondResourceLimitExceeded,
		code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable:
		f.kinds, f.wait = []error{lease.ErrThrottled}, waitTime(text)
	case condition == condDisabled:
		f.kinds, f.remedy = []error{lease.ErrInvalid}, "enable event hub "+strconv.Quote(hub)
	case condition == condGeoOffset:
		f.kinds, f.remedy = []error{lease.ErrInvalid}, "a checkpoint is from before geo-replication; delete it to begin anew"
	case condition == condArgument, condition == condArgumentRange, code == http.StatusBadRequest:
		f.kinds, f.remedy = []error{lease.ErrInvalid}, "check the names of event hub and consumer group"
	case condition == "" && code == 0:
		f.remedy = "check that " + n.host + " can be reached"
	}
	return f
}

// isContext reports whether the error only says that the caller gave up.
func isContext(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// lost reports whether the connection was lost, and could not be made anew.
func lost(err error) bool { return isCode(err, azeventhubs.ErrorCodeConnectionLost) }

func isCode(err error, code azeventhubs.ErrorCode) bool {
	var e *azeventhubs.Error
	return errors.As(err, &e) && e.Code == code
}

// rpcCode is the status of an answer of $management or $cbs; 0 where there is none. The SDK does not export its type.
func rpcCode(err error) int {
	var rpc interface {
		error
		RPCCode() int
	}
	if errors.As(err, &rpc) {
		return rpc.RPCCode()
	}
	return 0
}

// inText finds an error of go-amqp in a text. The SDK's Error for lost links and connections hides what it wraps, and only
// its text has the condition, which is part of the protocol.
var inText = regexp.MustCompile(`(?s)\*Error\{Condition: ([^,]+), Description: (.*), Info: .*\}`)

// explain gives the condition by which the service refused something, empty where it did not, and a text of one line.
func explain(err error) (condition amqp.ErrCond, text string) {
	var refused *amqp.Error
	if errors.As(err, &refused) {
		return refused.Condition, oneLine(string(refused.Condition) + ": " + refused.Description)
	}
	text = err.Error()
	var hidden *azeventhubs.Error
	if errors.As(err, &hidden) {
		text = strings.TrimPrefix(text, "("+string(hidden.Code)+"): ")
	}
	if found := inText.FindStringSubmatch(text); found != nil {
		return amqp.ErrCond(found[1]), oneLine(found[1] + ": " + found[2])
	}
	return "", oneLine(text)
}

// oneLine makes one line of a text, and cuts it to a length that can be read.
func oneLine(text string) string {
	const most = 500
	text = strings.ToValidUTF8(strings.Join(strings.Fields(text), " "), "�")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return strings.TrimSuffix(text, ":")
}

var waitSeconds = regexp.MustCompile(`wait (\d{1,4}) seconds`)

// waitTime is how long the service asks to wait, which only its text tells.
func waitTime(text string) time.Duration {
	if found := waitSeconds.FindStringSubmatch(text); found != nil {
		n, _ := strconv.Atoi(found[1]) // digits
		return time.Duration(n) * time.Second
	}
	return 0
}

// wrapStorage says which request to the storage account failed.
func wrapStorage(doing string, err error) error {
	if err == nil {
		return nil
	}
	var before *azstorage.Error
	if errors.As(err, &before) {
		return err // an earlier request failed, and that says more
	}
	e := azstorage.Wrap(doing, err)
	switch {
	case errors.Is(e.Kind, lease.ErrUnauthorized):
		e.Remedy = "check the checkpoint connection string: its key must be right and not expired, and a signature must allow to read, write and " +
			"create blobs, containers and queues"
	case errors.Is(e.Kind, lease.ErrInvalid):
		e.Remedy = "check the names of checkpoint container and poison queue"
	case bloberror.HasCode(err, bloberror.AccountIsDisabled) || queueerror.HasCode(err, queueerror.AccountIsDisabled):
		e.Kind, e.Remedy = lease.ErrInvalid, "enable the storage account"
	}
	return fmt.Errorf("%w: %w", lease.ErrCheckpointAccount, e)
}
