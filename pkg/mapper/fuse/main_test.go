//go:build cgo

package fuse_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/mapper/fuse"
	"github.com/rbd-csi/rbd-csi/pkg/mapper/fuse/worker"
	"github.com/rbd-csi/rbd-csi/test/ceph"
)

// The test binary is also the worker, and a driver that gets killed.
const (
	workerArgument = "fuse-worker"
	driverArgument = "fuse-driver"
)

// launch starts workers that are this test binary.
var launch = fuse.Command("/proc/self/exe", workerArgument)

var shared = ceph.Share(ceph.Options{ProposeInterval: 50 * time.Millisecond})

func TestMain(m *testing.M) {
	if len(os.Args) == 2 {
		switch os.Args[1] {
		case workerArgument:
			exit(worker.Run(os.Stdin, os.Stdout))
		case driverArgument:
			exit(drive(os.Stdin))
		case workersPodArgument, driverPodArgument:
			exit(runPod(os.Args[1], os.Stdin))
		}
	}
	os.Exit(shared.Main(m))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
