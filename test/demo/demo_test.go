package main

import (
	"path/filepath"
	"testing"
)

func TestWriteRecords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records")
	w, err := writeRecords(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Writes(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	written, err := w.Stop()
	if err != nil || written < 3 {
		t.Fatalf("stop: got %d, %v, want 3 or more", written, err)
	}
	if read, err := readRecords(path); err != nil || read != written {
		t.Errorf("records read: got %d, %v, want %d", read, err, written)
	}
	if _, err := writeRecords(path); err == nil {
		t.Error("write to a file that is there: got no error, want one")
	}
}
