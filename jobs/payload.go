package jobs

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
)

// EnvPayload is the environment variable that hands the payload to every container.
const EnvPayload = "KEDA_TASK_DATA"

// maxEnvString is the longest environment string that Linux takes: name, equals sign, value and the closing NUL
// (MAX_ARG_STRLEN in execve(2): 32 pages).
const maxEnvString = 131072

// maxEnvPayload is the longest payload that fits EnvPayload, in bytes.
const maxEnvPayload = maxEnvString - len(EnvPayload) - len("=") - len("\x00")

// ErrPayload means that a payload cannot be handed to a container as it is. The message is at fault, not the template.
var ErrPayload = errors.New("payload refused")

// payloadEnv makes the environment variable of a payload, or says why that cannot be. The payload itself is in no error.
func payloadEnv(payload []byte) (corev1.EnvVar, error) {
	switch {
	case len(payload) > maxEnvPayload:
		return corev1.EnvVar{}, fmt.Errorf("%w: it has %d bytes, and an environment variable carries %d at most",
			ErrPayload, len(payload), maxEnvPayload)
	case !utf8.Valid(payload):
		return corev1.EnvVar{}, fmt.Errorf("%w: it is not valid UTF-8, which an environment variable must be", ErrPayload)
	}
	value := string(payload)
	if i := strings.IndexByte(value, 0); i >= 0 {
		return corev1.EnvVar{}, fmt.Errorf("%w: byte %d is NUL, which an environment variable cannot carry", ErrPayload, i)
	}
	return corev1.EnvVar{Name: EnvPayload, Value: escape(value)}, nil
}

// escape doubles every dollar sign. The kubelet expands $(NAME) in a value with the variables before it, secrets among
// them, and turns $$ into $: doubled, each comes out as it went in.
func escape(value string) string { return strings.ReplaceAll(value, "$", "$$") }
