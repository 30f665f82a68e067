package jobs

import (
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
)

// The environment variables that hand a payload to every container.
const (
	// EnvPayload is the payload itself; of a pack, a JSON array of them.
	EnvPayload = "KEDA_TASK_DATA"
	// EnvPayloadFile is the path of a file with the payload; of a pack, with a line of JSON for each message.
	EnvPayloadFile = "KEDA_TASK_DATA_FILE"
	// EnvPayloadEncoding is "base64" where EnvPayload had to be encoded so, and absent elsewhere.
	EnvPayloadEncoding = "KEDA_TASK_DATA_ENCODING"
)

// Where a payload stands that comes as a file. The directory is a read-only volume, and the file has the mode 0444.
const (
	PayloadDir  = "/var/run/lighterman"
	PayloadFile = PayloadDir + "/" + fileName
	PackFile    = PayloadDir + "/" + packFileName

	fileName     = "payload"
	packFileName = "tasks.jsonl"
	volumeName   = "lighterman-payload"
)

const (
	// maxEnvString is the longest environment string that Linux takes: name, equals sign, value and the closing NUL
	// (MAX_ARG_STRLEN in execve(2): 32 pages).
	maxEnvString = 131072
	// maxEnvPayload is the longest payload that fits EnvPayload, in bytes.
	maxEnvPayload = maxEnvString - len(EnvPayload) - len("=") - len("\x00")
	// maxLiterals is the most that one payload, with its properties, may come to as literal values in all containers of a Job: it is written as part of the
	// Job, and of its pod, and etcd takes no more than 1.5 MiB at a time.
	maxLiterals = 1 << 20
	// smallPayload is the largest payload that PayloadAuto makes a literal value of, and so with properties. What is written in a pod template is stored
	// anew with each change to the Job and its pod, about ten times; a Secret costs one more request.
	smallPayload = 4096
)

// PayloadMode is how a payload reaches the containers.
type PayloadMode string

// The modes. What no environment variable can carry (NUL, invalid UTF-8, more than maxEnvPayload bytes) comes as a file in all but PayloadEnv.
const (
	// PayloadAuto writes small text into the Job, puts larger text into a Secret that EnvPayload refers to, and hands over anything else as a file.
	PayloadAuto PayloadMode = "auto"
	// PayloadEnv always writes the payload into the Job, in base64 where it must be.
	PayloadEnv PayloadMode = "env"
	// PayloadSecret puts text into a Secret that EnvPayload refers to.
	PayloadSecret PayloadMode = "secret"
	// PayloadAsFile hands over everything as a file.
	PayloadAsFile PayloadMode = "file"
)

// PayloadInSecret is the value of AnnotationPayload.
const PayloadInSecret = "secret"

// ErrPayload means that a payload cannot be handed to a container as it is. The message is at fault, not the template.
var ErrPayload = errors.New("payload refused")

// Content is a payload, or a pack of them, in the form in which it reaches the containers, and what its producer attached to it.
type Content struct {
	// env are the variables, with values ready for a pod template.
	env []corev1.EnvVar
	// data is what goes into a Secret, by key; nil where there is none.
	data map[string][]byte
	// file is the key of data that is mounted, as a file of that name; empty: none.
	file string
	// refs are the variables that refer to a key of the Secret.
	refs map[string]string
	// literal is the value of EnvProperties, ready for a pod template, where that is written into the Job, and properties is what it is made from.
	literal    string
	properties map[string]string
	// leftOut is how many properties there was no room for.
	leftOut int
}

// NewContent gives one message's payload its form. It fails with ErrPayload where that cannot be had. The payload itself is in no error.
func NewContent(mode PayloadMode, payload []byte) (*Content, error) {
	unfit := unfitForEnv(payload)
	switch {
	case mode == PayloadEnv && unfit == "":
		return &Content{env: []corev1.EnvVar{{Name: EnvPayload, Value: escape(string(payload))}}}, nil
	case mode == PayloadEnv:
		if n := base64.StdEncoding.EncodedLen(len(payload)); n > maxEnvPayload {
			return nil, fmt.Errorf("%w: %s, nor is there room for its base64 of %d bytes; with payload: auto it would come as a file", ErrPayload, unfit, n)
		}
		return &Content{env: []corev1.EnvVar{
			{Name: EnvPayload, Value: base64.StdEncoding.EncodeToString(payload)}, {Name: EnvPayloadEncoding, Value: "base64"},
		}}, nil
	case len(payload) > corev1.MaxSecretSize:
		return nil, fmt.Errorf("%w: it has %d bytes, and a Secret holds %d at most", ErrPayload, len(payload), corev1.MaxSecretSize)
	case unfit != "" || mode == PayloadAsFile:
		return &Content{
			env:  []corev1.EnvVar{{Name: EnvPayloadFile, Value: PayloadFile}},
			data: map[string][]byte{fileName: payload},
			file: fileName,
		}, nil
	case mode == PayloadSecret || len(payload) > smallPayload:
		return &Content{data: map[string][]byte{fileName: payload}, refs: map[string]string{EnvPayload: fileName}}, nil
	}
	return &Content{env: []corev1.EnvVar{{Name: EnvPayload, Value: escape(string(payload))}}}, nil
}

// unfitForEnv says why an environment variable cannot carry a payload as it is; empty where it can.
func unfitForEnv(payload []byte) string {
	if len(payload) > maxEnvPayload {
		return fmt.Sprintf("it has %d bytes, and an environment variable carries %d at most", len(payload), maxEnvPayload)
	}
	if !utf8.Valid(payload) {
		return "it is not valid UTF-8, which an environment variable must be"
	}
	if i := strings.IndexByte(string(payload), 0); i >= 0 {
		return fmt.Sprintf("byte %d is NUL, which an environment variable cannot carry", i)
	}
	return ""
}

// escape doubles every dollar sign. The kubelet expands $(NAME) in a value with the variables before it, secrets among
// them, and turns $$ into $: doubled, each comes out as it went in.
func escape(value string) string { return strings.ReplaceAll(value, "$", "$$") }

// variables are those of the content, for a Job of a name.
func (c *Content) variables(job string) []corev1.EnvVar {
	env := c.env[:len(c.env):len(c.env)]
	for _, name := range slices.Sorted(maps.Keys(c.refs)) {
		env = append(env, corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{
			SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: job}, Key: c.refs[name]},
		}})
	}
	if c.literal != "" {
		env = append(env, corev1.EnvVar{Name: EnvProperties, Value: c.literal})
	}
	if c.leftOut > 0 {
		env = append(env, corev1.EnvVar{Name: EnvPropertiesLeftOut, Value: strconv.Itoa(c.leftOut)})
	}
	return env
}

// within is the content in a form that so many containers have room for. It fails with ErrPayload where the payload alone is too large for them.
func (c *Content) within(containers int) (*Content, error) {
	err := c.fits(containers)
	if err != nil && c.literal != "" {
		c = c.withoutLiteral()
		err = c.fits(containers)
	}
	return c, err
}

// fits reports, by ErrPayload, that the content is too large for so many containers.
func (c *Content) fits(containers int) error {
	size := len(c.literal)
	for _, v := range c.env {
		size += len(v.Value)
	}
	if size*containers > maxLiterals {
		return fmt.Errorf("%w: written into each of %d containers it comes to %d bytes, and a Job has room for %d; with payload: auto it would come from a Secret",
			ErrPayload, containers, size*containers, maxLiterals)
	}
	return nil
}

// volume is the volume and the mount of the file; ok is false where there is none.
func (c *Content) volume(job string) (v corev1.Volume, m corev1.VolumeMount, ok bool) {
	if c.file == "" {
		return v, m, false
	}
	mode := int32(0o444)
	v = corev1.Volume{Name: volumeName, VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{
		SecretName: job, DefaultMode: &mode, Items: []corev1.KeyToPath{{Key: c.file, Path: c.file}},
	}}}
	return v, corev1.VolumeMount{Name: volumeName, MountPath: PayloadDir, ReadOnly: true}, true
}

// DecodeBase64 decodes a message that its producer encoded. It fails with ErrPayload, which tells no more than where.
func DecodeBase64(body []byte) ([]byte, error) {
	decoded := make([]byte, base64.StdEncoding.DecodedLen(len(body)))
	n, err := base64.StdEncoding.Decode(decoded, body)
	if err != nil {
		return nil, fmt.Errorf("%w: it is not base64 as message-encoding says: %w", ErrPayload, err)
	}
	return decoded[:n], nil
}
