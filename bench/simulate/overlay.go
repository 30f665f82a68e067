package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// edit replaces a text of a source file, which must be there exactly once: a source that has moved on is an error, and never an edit that
// silently does nothing.
type edit struct {
	file     string // relative to the root that it is applied to
	old, new string
}

// overlay is what the go command is to read in place of files that are there, or beside them: contents by absolute path.
type overlay map[string]string

// errMoved means that a source is not the one that an edit was written for.
var errMoved = errors.New("the source has changed")

// apply adds the edits of files below root, on top of those that the overlay has already.
func (o overlay) apply(root string, edits []edit) error {
	for _, e := range edits {
		path := filepath.Join(root, filepath.FromSlash(e.file))
		text, ok := o[path]
		if !ok {
			content, err := os.ReadFile(path) //nolint:gosec // a source file of this repository or of the installed Go
			if err != nil {
				return fmt.Errorf("%w: %w", errMoved, err)
			}
			text = string(content)
		}
		if n := strings.Count(text, e.old); n != 1 {
			return fmt.Errorf("%w: %s has %d times, instead of once, the text\n%s", errMoved, e.file, n, e.old)
		}
		o[path] = strings.Replace(text, e.old, e.new, 1)
	}
	return nil
}

// write puts the overlay into dir, and returns the file for the go command's -overlay.
func (o overlay) write(dir string) (string, error) {
	replace := make(map[string]string, len(o))
	for i, path := range slices.Sorted(maps.Keys(o)) {
		copied := filepath.Join(dir, strconv.Itoa(i)+"-"+filepath.Base(path))
		if err := os.WriteFile(copied, []byte(o[path]), 0o600); err != nil {
			return "", err
		}
		replace[path] = copied
	}
	listed, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "overlay.json")
	return file, os.WriteFile(file, listed, 0o600)
}
