package annotation_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lighterman-dev/lighterman/dispatcher/annotation"
)

var update = flag.Bool("update", false, "write docs/annotations.md anew")

const referenceHead = `# Annotations

<!-- Made from dispatcher/annotation/table.go by "make docs". Do not edit. -->

A template is a suspended ` + "`CronJob`" + ` (its ` + "`spec.jobTemplate`" + ` becomes the Jobs; recommended, since it stays editable) or a suspended ` + "`Job`" + `
(simple, but Kubernetes makes its pod template immutable). These annotations on it, each after ` + "`lighterman.dev/`" + `, say which source is
dispatched, and how:

` + "```yaml" + `
metadata:
  annotations:
    lighterman.dev/source: azure-storage-queue
    lighterman.dev/queue: tasks
    lighterman.dev/connection-secret: task-queue/connection-string
    lighterman.dev/max-in-flight: "50"
` + "```" + `

Values are strings: YAML wants numbers and ` + "`true`" + ` in quotes. Durations are written as in ` + "`30s`, `2m` or `1h30m`" + `. A key that is not in this
table is a mistake, and so is a key that does not apply to the source. A template with a mistake is not dispatched: an Event on it names key,
value and remedy, its messages stay where they are, and it goes on by itself once it is mended.

`

const referenceTail = `
¹ Not in this version; see the last column.

## How long finished Jobs stay

A Job stays at least until its message is settled, and after that for a *window* of ` + "`lease-duration`" + ` and about two minutes, in which its existence is what
keeps the message from running twice. Beyond the window, a ` + "`ttlSecondsAfterFinished`" + ` in the Job template decides where it is set. Where it is not, the newest finished
Jobs of each source stay: as many as the CronJob's ` + "`successfulJobsHistoryLimit`" + ` and ` + "`failedJobsHistoryLimit`" + ` say, which are 3 and 1 by default, and always for a
template that is a Job. They stay for up to a week after nobody dispatches the template any more.

## Several sources

An object can name several sources. Each further one has a name of your choice before the prefix, on all its keys:

` + "```yaml" + `
metadata:
  annotations:
    lighterman.dev/source: azure-storage-queue
    lighterman.dev/queue: tasks
    lighterman.dev/connection-secret: task-queue/connection-string
    lighterman.dev/max-in-flight: "50"
    thumbs.lighterman.dev/source: azure-storage-queue
    thumbs.lighterman.dev/queue: thumbs
    thumbs.lighterman.dev/connection-secret: task-queue/connection-string
    thumbs.lighterman.dev/jobs-per-second: "5"
` + "```" + `

Every source is dispatched by itself, with limits of its own: the object above runs up to 50 Jobs for ` + "`tasks`" + ` and up to 50 for ` + "`thumbs`" + `. A named set
takes the plain value of every key marked *shared* that it does not have itself. It never takes the others, which say where messages come
from and go to. Plain keys without a plain ` + "`source`" + ` are allowed where there are named sets, if all of them are shared.
`

// docs/annotations.md is what the table says.
func TestReference(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	b.WriteString(referenceHead)
	b.WriteString("| Key | For | Value | Default | Meaning |\n| --- | --- | --- | --- | --- |\n")
	for _, row := range annotation.Table() {
		fmt.Fprintf(&b, "| %s |\n", strings.Join([]string{
			"`" + row.Key + "`", sourcesText(row), valueText(row), defaultText(row), meaningText(row),
		}, " | "))
	}
	b.WriteString(referenceTail)

	const path = "../../docs/annotations.md"
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b.String(), string(got)); diff != "" {
		t.Errorf("%s is behind the table; run \"make docs\" (-want +got):\n%s", path, diff)
	}
}

func sourcesText(row annotation.Row) string {
	if len(row.Sources) == 0 {
		return "all"
	}
	return "`" + strings.Join(row.Sources, "`, `") + "`"
}

func valueText(row annotation.Row) string {
	text := ""
	switch row.Type {
	case annotation.TypeWord:
		text = "`" + strings.Join(row.Values, "`, `") + "`"
	case annotation.TypeText:
		text = fmt.Sprintf("`%s`, %d to %d characters", strings.ReplaceAll(row.Pattern, "|", `\|`), row.MinLength, row.MaxLength)
	case annotation.TypeInteger, annotation.TypeNumber, annotation.TypeDuration:
		text = fmt.Sprintf("%s, `%s` to `%s`", row.Type, row.Min, row.Max)
	case annotation.TypeDurations:
		text = fmt.Sprintf("two durations, `%s` to `%s`, as in `%s`", row.Min, row.Max, row.Example)
	case annotation.TypeBool:
		text = "`true`, `false`"
	case annotation.TypePosition:
		text = "`" + strings.Join(row.Values, "`, `") + "`, or a time as in `" + row.Example + "`"
	case annotation.TypeSecretKey:
		text = "as in `" + row.Example + "`"
	}
	if row.MayBeOff {
		text += ", or `" + annotation.Off + "`"
	}
	if row.Limited {
		text += "¹"
	}
	return text
}

func defaultText(row annotation.Row) string {
	text := ""
	if row.Required {
		text = "**required**"
	}
	if row.Default != "" {
		text = "`" + row.Default + "`"
	}
	if row.Shared {
		text += " *shared*"
	}
	return text
}

func meaningText(row annotation.Row) string {
	text := row.Doc
	if !row.Limited {
		return text
	}
	return text + " Not in this version: " + row.Instead + "."
}
