package annotation

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Error is one thing that is wrong with an object's annotations.
type Error struct {
	// Key is the full annotation key.
	Key string
	// Value is what was found there; empty where the key is missing, or where the value must not be repeated since it looks
	// like a credential.
	Value string
	// Problem is what is wrong, as a clause whose subject is the key or its value.
	Problem string
	// Remedy says what to do about it.
	Remedy string
}

// Error is one line that names key, value and remedy.
func (e *Error) Error() string {
	what := e.Key
	if e.Value != "" {
		what += fmt.Sprintf("=%q", e.Value)
	}
	return what + " " + e.Problem + "; " + e.Remedy
}

// Errors is everything that is wrong with one object, in the order of its keys. It is never empty.
type Errors []*Error

// Error joins all of them in one line.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, one := range e {
		lines[i] = one.Error()
	}
	return strings.Join(lines, ". ")
}

// Unwrap gives errors.Is and errors.As access to each.
func (e Errors) Unwrap() []error {
	errs := make([]error, len(e))
	for i, one := range e {
		errs[i] = one
	}
	return errs
}

// Parse reads all sets of annotations of an object of the given kind: the plain one first, then the named ones by name. It
// returns none where no annotation is ours. The error is of type Errors; with an error, there are no Specs, since
// what to do with half of a template is not ours to guess.
func Parse(kind string, annotations map[string]string) ([]*Spec, error) {
	p := parser{kind: kind, annotations: annotations, sets: map[string]map[string]value{}}
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		if set, name, ok := IsOurs(key); ok {
			p.read(key, set, name)
		}
	}
	var specs []*Spec
	for _, set := range slices.Sorted(maps.Keys(p.sets)) {
		if spec := p.spec(set); spec != nil {
			specs = append(specs, spec)
		}
	}
	if len(p.errs) > 0 {
		slices.SortStableFunc(p.errs, func(a, b *Error) int { return strings.Compare(a.Key, b.Key) })
		return nil, p.errs
	}
	return specs, nil
}

type parser struct {
	kind        string
	annotations map[string]string
	// sets holds what each set says; only keys that are known and whose values are good.
	sets map[string]map[string]value
	errs Errors
}

var setName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// read judges one annotation by itself, and in the light of its set's source.
func (p *parser) read(key, set, name string) {
	text := p.annotations[key]
	if set != "" && !setName.MatchString(set) {
		p.fail(key, text, "has a set name that is not a DNS label",
			fmt.Sprintf("write a name of small letters, digits and hyphens before .%s, such as %q", Prefix, fullKey("thumbs", name)))
		return
	}
	if p.sets[set] == nil {
		p.sets[set] = map[string]value{}
	}
	row, ok := p.row(key, set, name)
	if !ok {
		return
	}
	v, err := row.parse(text)
	if err != nil {
		p.fail(key, text, err.Problem, err.Remedy)
		return
	}
	p.sets[set][name] = v
}

// row finds the row that judges an annotation. Having none is the user's mistake, and recorded as such, unless it only
// cannot be told which of several rows is the right one because the source is missing or wrong, which is recorded elsewhere.
func (p *parser) row(key, set, name string) (*Row, bool) {
	rows := rowsOf(name, p.kind)
	if len(rows) == 0 {
		p.fail(key, p.annotations[key], p.unknown(name), p.remedyForUnknown(set, name))
		return nil, false
	}
	source := p.source(set)
	var applying []*Row
	for _, row := range rows {
		if row.appliesToSource(source) {
			applying = append(applying, row)
		}
	}
	if len(applying) == 0 {
		p.fail(key, p.annotations[key], "does not apply to source "+source, p.remedyForMisplaced(set, source, rows[0]))
		return nil, false
	}
	return applying[0], len(applying) == 1
}

// source is what the set says its source is; empty where it says nothing, or nothing sensible.
func (p *parser) source(set string) string {
	source := p.annotations[fullKey(set, KeySource)]
	for _, row := range rowsOf(KeySource, p.kind) {
		if slices.Contains(row.Values, source) {
			return source
		}
	}
	return ""
}

// spec puts together what a set says, what the plain set adds to it, and defaults. It is nil where there is no source, and
// not to be used where errors were recorded.
func (p *parser) spec(set string) *Spec {
	source, ok := p.sets[set][KeySource]
	if !ok {
		if _, present := p.annotations[fullKey(set, KeySource)]; !present && !p.onlyDefaults(set) {
			p.missing(set, rowsOf(KeySource, p.kind))
		}
		return nil
	}
	s := &Spec{Set: set}
	for _, row := range rows(p.kind) {
		if !row.appliesToSource(source.text) {
			continue
		}
		if v, ok := p.resolve(set, row); ok && row.set != nil {
			row.set(s, v)
		}
	}
	p.cross(s)
	return s
}

// cross judges what no key can be refused for by itself. A field is zero where the value was refused already.
func (p *parser) cross(s *Spec) {
	p.crossPoison(s)
	if s.TasksPerJob <= 1 {
		return
	}
	if s.Payload == "env" || s.Payload == "secret" {
		p.fail(s.Key(KeyPayload), s.Payload,
			fmt.Sprintf("does not go with %s %d: several messages always come as a file, with a line of JSON for each", KeyTasksPerJob, s.TasksPerJob),
			`leave it out, or write "auto" or "file"`)
	}
	if s.MaxAttempts == 1 {
		p.fail(s.Key(KeyMaxAttempts), "1",
			fmt.Sprintf("is too few for %s %d: what failed together is tried again with fewer, and in the end alone, so that one bad message "+
				"cannot poison its neighbours", KeyTasksPerJob, s.TasksPerJob),
			fmt.Sprintf(`write "2" or more, or set %s to "1"`, s.Key(KeyTasksPerJob)))
	}
}

// crossPoison judges where bad messages go. An event hub's name and a queue's never mean the same.
func (p *parser) crossPoison(s *Spec) {
	key, name := KeyPoisonQueue, s.PoisonQueue
	if s.Source == SourceAzureEventHubs {
		key, name = KeyPoisonEventHub, s.PoisonEventHub
	}
	if name != "" && name == s.Entity() {
		p.fail(s.Key(key), name, "names the very source that bad messages are to be moved out of", "write another name, or leave it out")
	}
	if s.PoisonEventHub == "" {
		return
	}
	if _, both := p.sets[s.Set][KeyPoisonQueue]; both {
		p.fail(s.Key(KeyPoisonQueue), s.PoisonQueue, "does not go with "+s.Key(KeyPoisonEventHub)+": an event is copied to one place", "remove one of the two")
	}
	s.PoisonQueue = ""
}

// onlyDefaults reports whether a set without a source is the plain one and there only for the named ones.
func (p *parser) onlyDefaults(set string) bool {
	if set != "" || len(p.sets) == 1 {
		return false
	}
	for key := range p.annotations {
		keySet, name, ok := IsOurs(key)
		if !ok || keySet != "" {
			continue
		}
		if slices.ContainsFunc(rowsOf(name, p.kind), func(r *Row) bool { return !r.Shared }) {
			return false
		}
	}
	return true
}

// resolve finds the value that a row has in a set. ok is false where there is none.
func (p *parser) resolve(set string, row *Row) (v value, ok bool) {
	if v, ok := p.sets[set][row.Key]; ok {
		return v, true
	}
	key := fullKey(set, row.Key)
	if _, present := p.annotations[key]; present {
		return value{}, false // It was refused.
	}
	if v, ok := p.sets[""][row.Key]; ok && row.Shared {
		return v, true
	}
	if row.Required {
		p.missing(set, []*Row{row})
		return value{}, false
	}
	text, ok := p.expand(set, row.Default)
	if !ok {
		return value{}, false
	}
	if row.tidy != nil {
		text = row.tidy(text)
	}
	v, err := row.parse(text)
	if err != nil {
		p.fail(key, "", fmt.Sprintf("is missing, and its default %q %s", text, err.Problem), "set "+key)
		return value{}, false
	}
	return v, true
}

var placeholder = regexp.MustCompile(`<[a-z-]+>`)

// expand replaces the keys in angle brackets by their values. ok is false where the text is empty or such a value was refused.
func (p *parser) expand(set, text string) (expanded string, ok bool) {
	ok = text != ""
	expanded = placeholder.ReplaceAllStringFunc(text, func(name string) string {
		v, found := p.sets[set][strings.Trim(name, "<>")]
		ok = ok && found
		return v.text
	})
	return expanded, ok
}

func (p *parser) missing(set string, rows []*Row) {
	for _, row := range rows {
		remedy := fmt.Sprintf("add it, with a value such as %q", row.Example)
		if row.Type == TypeWord {
			remedy = "add it, with one of the values " + strings.Join(row.Values, ", ")
		}
		p.fail(fullKey(set, row.Key), "", "is missing", remedy)
	}
}

func (p *parser) unknown(name string) string {
	if slices.ContainsFunc(table, func(r Row) bool { return r.Key == name }) {
		return "does not apply to a " + p.kind
	}
	return "is not an annotation that is known"
}

func (p *parser) remedyForUnknown(set, name string) string {
	var keys []string
	for _, row := range rows(p.kind) {
		keys = append(keys, row.Key)
	}
	if key, ok := nearest(name, keys); ok && key != name {
		return fmt.Sprintf("did you mean %s?", fullKey(set, key))
	}
	return "remove it"
}

// remedyForMisplaced proposes the key that means for this source what the misplaced one means for its own.
func (p *parser) remedyForMisplaced(set, source string, misplaced *Row) string {
	for _, row := range rows(p.kind) {
		if misplaced.entity && row.entity && row.appliesToSource(source) {
			return "use " + fullKey(set, row.Key) + " instead"
		}
	}
	return "remove it"
}

// fail records a mistake. A value that looks like a connection string is not repeated: somebody wrote it where the name of its
// Secret belongs, and errors travel to Events and logs that more people read than the object.
func (p *parser) fail(key, value, problem, remedy string) {
	if strings.ContainsAny(value, "=@") || strings.Contains(value, "://") {
		value, problem = "", "has a value that is not shown, since it looks like a connection string: it "+problem
	}
	if len(value) > maxShown {
		value = strings.ToValidUTF8(value[:maxShown], "") + "…"
	}
	p.errs = append(p.errs, &Error{Key: key, Value: value, Problem: problem, Remedy: remedy})
}

// maxShown is how many bytes of a value an error repeats: enough to recognise it by.
const maxShown = 80

// rows are all those for objects of a kind.
func rows(kind string) []*Row {
	var found []*Row
	for i := range table {
		if slices.Contains(table[i].Kinds, kind) {
			found = append(found, &table[i])
		}
	}
	return found
}

// rowsOf are the rows of a key for objects of a kind.
func rowsOf(name, kind string) []*Row {
	return slices.DeleteFunc(rows(kind), func(r *Row) bool { return r.Key != name })
}
