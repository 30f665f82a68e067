// Command go reads what Lighterman hands over, be it one message or a pack, and prints the id and the SHA-256 of each message. Replace process.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
)

// task is one line of a pack.
type task struct {
	ID         string `json:"id"`
	Data       string `json:"data"`
	DataBase64 []byte `json:"data_base64"` // instead of data, where that is not valid UTF-8
}

func (t task) payload() []byte {
	if t.DataBase64 != nil {
		return t.DataBase64
	}
	return []byte(t.Data)
}

func isPack() bool { return path.Base(os.Getenv("KEDA_TASK_DATA_FILE")) == "tasks.jsonl" }

// each calls do with the id and the payload of each message.
func each(do func(id string, payload []byte)) error {
	id, file := os.Getenv("LIGHTERMAN_MESSAGE_ID"), os.Getenv("KEDA_TASK_DATA_FILE")
	switch {
	case isPack():
		return eachLine(file, do)
	case file != "":
		payload, err := os.ReadFile(file) //nolint:gosec // the path comes from Lighterman, not from the message
		if err != nil {
			return err
		}
		do(id, payload)
		return nil
	}
	text, ok := os.LookupEnv("KEDA_TASK_DATA")
	if !ok {
		return errors.New("there is no task: neither KEDA_TASK_DATA nor KEDA_TASK_DATA_FILE is set")
	}
	payload := []byte(text)
	if os.Getenv("KEDA_TASK_DATA_ENCODING") == "base64" {
		var err error
		if payload, err = base64.StdEncoding.DecodeString(text); err != nil {
			return err
		}
	}
	do(id, payload)
	return nil
}

// eachLine is each for a pack. A bufio.Scanner would stop at a line of more than 64 KiB.
func eachLine(file string, do func(id string, payload []byte)) error {
	pack, err := os.Open(file) //nolint:gosec // the path comes from Lighterman, not from a message
	if err != nil {
		return err
	}
	defer pack.Close()
	lines := json.NewDecoder(bufio.NewReader(pack))
	for {
		var t task
		switch err := lines.Decode(&t); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		do(t.ID, t.payload())
	}
}

// process does the work of one message. An error is a failed attempt.
func process(id string, payload []byte) error {
	if string(payload) == "fail" { // so that you can see what comes of it
		return errors.New("it asks for it")
	}
	_, err := fmt.Printf("%s %x\n", id, sha256.Sum256(payload))
	return err
}

func run() error {
	var failed []string
	err := each(func(id string, payload []byte) {
		if err := process(id, payload); err != nil {
			fmt.Fprintf(os.Stderr, "message %s failed: %v\n", id, err)
			failed = append(failed, id)
		}
	})
	if err != nil || len(failed) == 0 {
		return err
	}
	report, err := json.Marshal(map[string][]string{"failed": failed})
	if err != nil {
		return err
	}
	if !isPack() || len(report) > 4096 {
		return errors.New("all that there was counts as failed")
	}
	log := os.Getenv("TERMINATION_LOG")
	if log == "" {
		log = "/dev/termination-log"
	}
	// As the last thing: with exit status 0, what is not named here is completed.
	return os.WriteFile(log, report, 0o600) //nolint:gosec // the path comes from the template, not from a message
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
