package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOverlay(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "a.go"), []byte("one two two"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		edits []edit
		want  string // empty: the source has moved on
	}{
		"one edit":         {[]edit{{"a.go", "one", "1"}}, "1 two two"},
		"two, in order":    {[]edit{{"a.go", "one two", "1"}, {"a.go", "1 two", "2"}}, "2"},
		"text not there":   {[]edit{{"a.go", "three", "3"}}, ""},
		"text there twice": {[]edit{{"a.go", "two", "2"}}, ""},
		"file not there":   {[]edit{{"b.go", "one", "1"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			o := overlay{}
			err := o.apply(root, test.edits)
			if test.want == "" {
				if !errors.Is(err, errMoved) || !strings.Contains(err.Error(), test.edits[0].file) {
					t.Errorf("error %v, want one that names the file", err)
				}
				return
			}
			if got := o[filepath.Join(root, "a.go")]; err != nil || got != test.want {
				t.Errorf("%q, %v; want %q", got, err, test.want)
			}
		})
	}
}

// TestMovedRuntime: a Go whose source is another one is named, with what was not found.
func TestMovedRuntime(t *testing.T) {
	goroot := t.TempDir()
	for _, e := range runtimeEdits {
		file := filepath.Join(goroot, "src", e.file)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("package other\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	err := deterministicRuntime(overlay{}, goroot, "go9.99")
	if !errors.Is(err, errMoved) || !strings.Contains(err.Error(), "go9.99") || !strings.Contains(err.Error(), runtimeEdits[0].old) {
		t.Errorf("error %v, want one that names the version and the text", err)
	}
}
