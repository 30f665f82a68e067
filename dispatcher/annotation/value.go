package annotation

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Patterns that a whole value matches, by its type. They are RE2, as are those of the Kubernetes API server's CEL.
const (
	integerPattern   = `-?(0|[1-9][0-9]*)`
	numberPattern    = `(0|[1-9][0-9]*)(\.[0-9]+)?`
	durationPattern  = `([0-9]+(\.[0-9]+)?(ms|s|m|h))+`
	timePattern      = `[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})`
	secretKeyPattern = objectName + `/[-._a-zA-Z0-9]+`
)

// Grammar is the regular expression (RE2) that the whole value must match. What it admits can still be out of bounds.
func (r *Row) Grammar() string {
	pattern := r.Pattern
	switch r.Type {
	case TypeText:
	case TypeWord:
		pattern = strings.Join(r.Values, "|")
	case TypeInteger:
		pattern = integerPattern
	case TypeNumber:
		pattern = numberPattern
	case TypeDuration:
		pattern = durationPattern
	case TypeDurations:
		pattern = durationPattern + `\.\.` + durationPattern
	case TypeBool:
		pattern = "true|false"
	case TypePosition:
		pattern = strings.Join(r.Values, "|") + "|" + timePattern
	case TypeSecretKey:
		pattern = secretKeyPattern
	}
	if r.MayBeOff {
		pattern += "|" + Off
	}
	return "^(" + pattern + ")$"
}

// value is a parsed annotation: the field that goes with its row's type is set. All are zero for Off, but text.
type value struct {
	text      string
	integer   int
	number    float64
	duration  time.Duration
	backoff   Backoff
	bool      bool
	time      time.Time
	secretKey SecretKey
}

// parse reads text as the row demands. The error is without key and value, which the caller knows.
func (r *Row) parse(text string) (value, *Error) {
	if !regexp.MustCompile(r.Grammar()).MatchString(text) {
		return value{}, &Error{Problem: r.expected(), Remedy: r.remedy(text)}
	}
	v, problem := r.convert(text)
	if problem == "" && r.Limited {
		return value{}, &Error{Problem: "is not supported by this version yet", Remedy: r.Instead}
	}
	if problem != "" {
		return value{}, &Error{Problem: problem, Remedy: r.remedy(text)}
	}
	return v, nil
}

// convert turns text, which matches the row's grammar, into a value within the row's bounds.
func (r *Row) convert(text string) (v value, problem string) {
	v.text = text
	if r.MayBeOff && text == Off {
		return v, ""
	}
	ok := true
	switch r.Type {
	case TypeWord:
	case TypeText:
		if len(text) < r.MinLength || len(text) > r.MaxLength {
			return v, fmt.Sprintf("must have %d to %d characters, and has %d", r.MinLength, r.MaxLength, len(text))
		}
	case TypeInteger:
		v.integer, ok = within(text, r.Min, r.Max, strconv.Atoi)
	case TypeNumber:
		v.number, ok = within(text, r.Min, r.Max, func(s string) (float64, error) { return strconv.ParseFloat(s, 64) })
	case TypeDuration:
		v.duration, ok = within(text, r.Min, r.Max, time.ParseDuration)
	case TypeDurations:
		first, last, _ := strings.Cut(text, "..")
		var firstOK, lastOK bool
		v.backoff.Min, firstOK = within(first, r.Min, r.Max, time.ParseDuration)
		v.backoff.Max, lastOK = within(last, r.Min, r.Max, time.ParseDuration)
		ok = firstOK && lastOK
		if ok && v.backoff.Min > v.backoff.Max {
			return v, "begins with the longer of its durations"
		}
	case TypeBool:
		v.bool = text == "true"
	case TypePosition:
		if slices.Contains(r.Values, text) {
			break
		}
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return v, "is a time that no calendar has"
		}
		v.time = at.UTC() // so that equal times are equal to ==
	case TypeSecretKey:
		name, key, _ := strings.Cut(text, "/")
		v.secretKey = SecretKey{Name: name, Key: key}
		if len(name) > maxObjectName || len(key) > maxObjectName {
			return v, fmt.Sprintf("has a part of more than %d characters, which Kubernetes does not admit", maxObjectName)
		}
	}
	if !ok {
		return v, fmt.Sprintf("is out of range: from %s to %s", r.Min, r.Max)
	}
	return v, ""
}

// maxObjectName is how long the name of a Secret, and a key in it, can be.
const maxObjectName = 253

// within converts text and reports whether it lies within the bounds. A number too large for its type lies outside.
func within[T int | float64 | time.Duration](text, lowest, highest string, convert func(string) (T, error)) (T, bool) {
	v, err := convert(text)
	if err != nil {
		return 0, false
	}
	low, lowErr := convert(lowest)
	high, highErr := convert(highest)
	return v, lowErr == nil && highErr == nil && low <= v && v <= high
}

// expected says what the row demands, as what is wrong with a value that does not match its grammar.
func (r *Row) expected() string {
	what := ""
	switch r.Type {
	case TypeWord:
		what = "is none of the words " + strings.Join(r.Values, ", ")
	case TypeText:
		what = "does not match " + r.Pattern
	case TypeInteger:
		what = "is not a whole number"
	case TypeNumber:
		what = "is not a number"
	case TypeDuration:
		what = "is not a duration such as 30s, 2m or 1h30m"
	case TypeDurations:
		what = "is not two durations with two dots between them"
	case TypeBool:
		what = "is neither true nor false"
	case TypePosition:
		what = "is none of the words " + strings.Join(r.Values, ", ") + ", nor a time as in " + r.Example
	case TypeSecretKey:
		what = "is not of the form name/key, which names a Secret and a key in it"
	}
	if r.MayBeOff {
		what += ", nor " + Off
	}
	return what
}

// remedy says what to write instead of text, as near to it as can be guessed.
func (r *Row) remedy(text string) string {
	for _, guess := range []string{strings.TrimSpace(text), strings.ToLower(strings.TrimSpace(text))} {
		if guess == text || !regexp.MustCompile(r.Grammar()).MatchString(guess) {
			continue
		}
		if _, problem := r.convert(guess); problem == "" {
			return fmt.Sprintf("write %q", guess)
		}
	}
	switch r.Type {
	case TypeWord:
		if word, ok := nearest(text, r.Values); ok {
			return fmt.Sprintf("did you mean %q?", word)
		}
		return "write one of them"
	case TypeInteger, TypeNumber, TypeDuration:
		return fmt.Sprintf("write a value from %s to %s%s, such as %q", r.Min, r.Max, r.orOff(), r.Example)
	case TypeDurations:
		return fmt.Sprintf("write the shorter first, both from %s to %s, such as %q", r.Min, r.Max, r.Example)
	case TypeBool:
		return `write "true" or "false"`
	case TypePosition:
		return fmt.Sprintf("write %s, or a time such as %q", strings.Join(r.Values, ", "), r.Example)
	case TypeText, TypeSecretKey:
	}
	if r.Example == "" {
		return r.Instead
	}
	return fmt.Sprintf("write a value such as %q", r.Example)
}

func (r *Row) orOff() string {
	if r.MayBeOff {
		return ", or " + strconv.Quote(Off)
	}
	return ""
}

// nearest finds the candidate that text is most likely a slip of the pen for.
func nearest(text string, candidates []string) (string, bool) {
	best, bestDistance := "", 0
	for _, candidate := range candidates {
		d := distance(strings.ToLower(text), candidate, max(2, len(candidate)/3))
		if d >= 0 && (best == "" || d < bestDistance) {
			best, bestDistance = candidate, d
		}
	}
	return best, best != ""
}

// distance is how many single-character edits lead from a to b (Levenshtein); -1 where more than limit are needed.
func distance(a, b string, limit int) int {
	if len(a)-len(b) > limit || len(b)-len(a) > limit {
		return -1
	}
	previous := make([]int, len(b)+1)
	current := make([]int, len(b)+1)
	for j := range previous {
		previous[j] = j
	}
	for i := range len(a) {
		current[0] = i + 1
		for j := range len(b) {
			substituted := previous[j]
			if a[i] != b[j] {
				substituted++
			}
			current[j+1] = min(substituted, previous[j+1]+1, current[j]+1)
		}
		previous, current = current, previous
	}
	if previous[len(b)] > limit {
		return -1
	}
	return previous[len(b)]
}

// tidyQueueName makes the name of an Azure Storage queue of that of something else: in small letters, with hyphens for what it cannot have, and not too long.
func tidyQueueName(text string) string {
	const most = 63
	name := notInQueueNames.ReplaceAllString(strings.ToLower(text), "-")
	if excess := len(name) - most; excess > 0 {
		at := strings.LastIndexByte(name, '-')
		name = strings.TrimRight(name[:at-excess], "-") + name[at:]
	}
	return strings.Trim(name, "-")
}

var notInQueueNames = regexp.MustCompile(`[^a-z0-9]+`)
