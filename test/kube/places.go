package kube

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// Places are the folders that `make` uses, and what command and tests take where nothing else is said.
type Places struct {
	// Module is that of the Go module test/kube.
	Module string
	// Build is where everything goes that is made: bin, images, and the cluster itself.
	Build string
}

// FindPlaces finds the repository around the working directory; fault.NotFound if there is none.
func FindPlaces() (Places, error) {
	working, err := os.Getwd()
	if err != nil {
		return Places{}, err
	}
	for folder := working; ; folder = filepath.Dir(folder) {
		module := filepath.Join(folder, "test", "kube")
		if exists(filepath.Join(module, "go.mod")) {
			return Places{Module: module, Build: filepath.Join(folder, "build", "kube")}, nil
		}
		if folder == filepath.Dir(folder) {
			return Places{}, fmt.Errorf("find the repository around %s: %w", working, fault.NotFound)
		}
	}
}

// Top is the top of the repository.
func (p Places) Top() string { return filepath.Dir(filepath.Dir(p.Module)) }

// Packages is where packages of Debian are kept that images are made of.
func (p Places) Packages() string { return filepath.Join(p.Build, "packages") }

// Options are those for the cluster that `make kube` brings up.
func (p Places) Options() Options {
	return Options{
		Folder:   filepath.Join(p.Build, "cluster"),
		Binaries: filepath.Join(p.Build, "bin"),
		Images:   filepath.Join(p.Build, "images"),
	}
}
