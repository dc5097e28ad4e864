package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/demo/story"
	"github.com/rbd-csi/rbd-csi/test/driver"
)

const (
	clusterName = "demo" // in handles
	pool        = "kube"
	user        = "rbd-csi" // client.rbd-csi
	// requestTimeout is how long one request may take; the sidecars allow about as much.
	requestTimeout = time.Minute
)

// A stage is where the scenes play: a cluster, the driver, and the StatefulSet.
type stage struct {
	*story.Stage
	options options

	cluster    *ceph.Cluster
	driver     *driver.Driver
	controller *driver.Process
	nodeA      *driver.Process
	nodeB      *driver.Process
	fsType     string // of the StorageClass
	web        []*replica
	before     driver.Remains // what the machine had before
}

// request makes a CSI request and prints it with its duration. About is what it is about.
func (s *stage) request(method string, to *driver.Process, about string, call func(context.Context) error) {
	if s.Err != nil {
		return
	}
	took, err := s.call(call)
	if err != nil {
		s.Err = fmt.Errorf("%s of %s to %s: %w", method, about, to.Name, err)
		return
	}
	s.Did(method, fmt.Sprintf("%-11s %s", to.Name, about), took)
}

// refused makes a request that has to be refused, with a text that contains what the error has to say.
func (s *stage) refused(method string, to *driver.Process, about, because string, call func(context.Context) error) {
	if s.Err != nil {
		return
	}
	took, err := s.call(call)
	if err == nil || !strings.Contains(err.Error(), because) {
		s.Err = fmt.Errorf("%s of %s to %s: got %v, want an error that says %q", method, about, to.Name, err, because)
		return
	}
	s.Did(method, fmt.Sprintf("%-11s %s", to.Name, about), took)
	code, text := parts(err)
	s.Wrap("      ", "refused with "+code+": "+text)
}

func (s *stage) call(call func(context.Context) error) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(s.Ctx, requestTimeout)
	defer cancel()
	begun := time.Now()
	err = call(ctx)
	return time.Since(begun), err
}

// clear takes everything down, whatever state it is in, and says what could not be.
func (s *stage) clear() error {
	// Ctrl-C ends the scenes, and not the clearing.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.Ctx), time.Minute)
	defer cancel()
	for _, replica := range s.web {
		replica.silence()
	}
	if s.driver != nil {
		if err := s.driver.Close(); err != nil {
			return err
		}
	}
	if s.cluster != nil {
		return s.cluster.Down(ctx)
	}
	return nil
}

// keepLogs saves the logs before clear removes them, and returns where they are.
func (s *stage) keepLogs() string {
	directory, err := filepath.Abs(s.options.logs)
	if err != nil || s.driver == nil {
		return ""
	}
	if _, err := s.driver.KeepLogs(directory); err != nil {
		return err.Error()
	}
	return directory
}
