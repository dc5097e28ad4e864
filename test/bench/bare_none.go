//go:build !cgo

package main

import "errors"

// connect needs librbd, and so a C compiler.
func connect(string) (bare, trash, error) {
	return nil, nil, errors.New("built without cgo, so there is no librbd to compare with; see `make bench`")
}
