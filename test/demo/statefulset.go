package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc/status"

	"github.com/rbd-csi/rbd-csi/test/demo/story"
	"github.com/rbd-csi/rbd-csi/test/driver"
)

// A replica is one of the StatefulSet's: its claim, which outlives its pods, and where its
// pod runs.
type replica struct {
	pod    string // web-0
	claim  string // data-web-0
	volume driver.Volume

	node     *driver.Process // nil while there is no pod
	nodeID   string
	attached map[string]string
	writer   *story.Writer
	sum      string // of the file that fill wrote
}

// newReplica returns the replica of that number, without a volume.
func newReplica(number int) *replica {
	return &replica{pod: fmt.Sprintf("web-%d", number), claim: fmt.Sprintf("data-web-%d", number)}
}

// image is what Ceph's tools take.
func (r *replica) image() string { return pool + "/" + r.volume.Name }

// show runs a command in the pod's directory, where its volume is at "data".
func (r *replica) show(s *stage, command ...string) string {
	return s.ShowIn(filepath.Dir(r.path()), r.pod+"$ ", command...)
}

// checksum returns the sum that sha256sum prints for the file that fill writes.
func (r *replica) checksum(s *stage) string {
	sum, _, _ := strings.Cut(r.show(s, "sha256sum", "data/blob"), " ")
	return sum
}

// path is where the pod sees the volume.
func (r *replica) path() string {
	if r.node == nil {
		return ""
	}
	return r.node.TargetPath(r.pod)
}

// silence ends the writer, if one writes.
func (r *replica) silence() {
	if r.writer != nil {
		r.writer.Abandon()
		r.writer = nil
	}
}

// provision makes the claim's volume, as external-provisioner does.
func (s *stage) provision(r *replica) {
	claim := s.claim(r)
	s.request("CreateVolume", s.controller, r.claim+", 1 GiB", func(ctx context.Context) (err error) {
		r.volume, err = s.controller.Create(ctx, claim)
		return err
	})
}

// claim is the replica's claim with the parameters of the StorageClass.
func (s *stage) claim(r *replica) driver.Claim {
	return driver.Claim{
		Volume:     "pvc-" + uuid(),
		Name:       r.claim,
		Namespace:  "default",
		Bytes:      1 << 30,
		Use:        driver.Filesystem(s.fsType),
		Parameters: map[string]string{"cluster": clusterName, "pool": pool, "mapper": "fuse"},
	}
}

// start starts the replica's pod on a node: external-attacher attaches the volume, kubelet
// stages and publishes it.
func (s *stage) start(r *replica, node *driver.Process) {
	if s.Err != nil {
		return
	}
	if r.nodeID, s.Err = node.ID(s.Ctx); s.Err != nil {
		return
	}
	r.node = node
	s.request("ControllerPublishVolume", s.controller, r.claim+" for "+node.Name, func(ctx context.Context) (err error) {
		r.attached, err = s.controller.Attach(ctx, r.volume, r.nodeID)
		return err
	})
	s.request("NodeStageVolume", node, r.claim, func(ctx context.Context) error {
		return node.Stage(ctx, r.volume, r.attached)
	})
	s.request("NodePublishVolume", node, r.claim+" for pod "+r.pod, func(ctx context.Context) error {
		return node.Publish(ctx, r.volume, r.attached, r.pod)
	})
}

// stop stops the replica's pod and brings its volume back from the node; the claim stays.
func (s *stage) stop(r *replica) {
	if s.Err != nil {
		return
	}
	node := r.node
	s.request("NodeUnpublishVolume", node, r.claim+" of pod "+r.pod, func(ctx context.Context) error {
		return node.Unpublish(ctx, r.volume, r.pod)
	})
	s.request("NodeUnstageVolume", node, r.claim, func(ctx context.Context) error {
		return node.Unstage(ctx, r.volume)
	})
	s.request("ControllerUnpublishVolume", s.controller, r.claim+" from "+node.Name, func(ctx context.Context) error {
		return s.controller.Detach(ctx, r.volume, r.nodeID)
	})
	if s.Err == nil {
		r.node, r.attached = nil, nil
	}
}

// destroy deletes the claim, and with it the volume.
func (s *stage) destroy(r *replica) {
	s.request("DeleteVolume", s.controller, r.claim, func(ctx context.Context) error {
		return s.controller.Delete(ctx, r.volume)
	})
}

// write begins to write records in the replica's pod.
func (s *stage) write(r *replica) {
	if s.Err == nil {
		r.writer, s.Err = writeRecords(r.path() + "/records")
	}
}

// writesOn sees that the writer goes on, and says since when it has.
func (s *stage) writesOn(r *replica, records int) {
	if s.Err == nil {
		s.Err = r.writer.Writes(s.Ctx, records)
	}
}

// endWriting ends the writer and reads everything back.
func (s *stage) endWriting(r *replica) {
	if s.Err != nil {
		return
	}
	var records, read int
	if records, s.Err = r.writer.Stop(); s.Err != nil {
		return
	}
	r.writer = nil
	if read, s.Err = readRecords(r.path() + "/records"); s.Err != nil {
		return
	}
	s.Check(records == read, "%d records were written and synced without an error, %d are there", records, read)
}

// writeRecords begins to write records to a new file.
func writeRecords(path string) (*story.Writer, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("write records: %w", err)
	}
	write := func(record string) error {
		if _, err := file.WriteString(record); err != nil {
			return err
		}
		return file.Sync()
	}
	return story.NewWriter(write, file.Close), nil
}

// readRecords returns how many records a file holds.
func readRecords(path string) (int, error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("read records: %w", err)
	}
	defer file.Close() // read only
	return story.CountRecords(file)
}

// parts returns the gRPC code and the text of an error.
func parts(err error) (code, text string) {
	return status.Code(err).String(), status.Convert(err).Message()
}

// uuid returns a random UUID, version 4 of RFC 9562, as Kubernetes gives each object.
func uuid() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
