package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"k8s.io/klog/v2"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

type snapshotMetadata struct {
	csi.UnimplementedSnapshotMetadataServer
}

func (snapshotMetadata) GetMetadataAllocated(req *csi.GetMetadataAllocatedRequest, stream csi.SnapshotMetadata_GetMetadataAllocatedServer) error {
	klog.FromContext(stream.Context()).Info("Streaming")
	for range 2 {
		if err := stream.Send(&csi.GetMetadataAllocatedResponse{VolumeCapacityBytes: req.GetStartingOffset()}); err != nil {
			return err
		}
	}
	return fmt.Errorf("snapshot %s: %w", req.GetSnapshotId(), fault.DataLoss)
}

func TestStreamsPassThroughTheChain(t *testing.T) {
	logger, logs := newLog()
	connection, _ := start(t, Options{SnapshotMetadata: snapshotMetadata{}, Logger: logger})
	client := csi.NewSnapshotMetadataClient(connection)

	stream, err := client.GetMetadataAllocated(t.Context(), &csi.GetMetadataAllocatedRequest{SnapshotId: "a:rbd/i@s", StartingOffset: 7})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		resp, err := stream.Recv()
		if err != nil || resp.GetVolumeCapacityBytes() != 7 {
			t.Fatalf("got %v, %v, want an answer that has seen the request", resp, err)
		}
	}
	_, err = stream.Recv()
	expectStatus(t, err, codes.DataLoss, "snapshot a:rbd/i@s")
	for _, message := range []string{`"Streaming"`, `"Failed"`} {
		if lines := logs.lines(message); len(lines) != 1 {
			t.Errorf("got %d lines with %s, want 1:\n%s", len(lines), message, logs)
		}
	}

	logged := logs.lines(`"Failed"`)[0]
	for _, want := range []string{`method="GetMetadataAllocated"`, `snapshot="a:rbd/i@s"`, `code="DataLoss"`, "request=1"} {
		if !strings.Contains(logged, want) {
			t.Errorf("got %s, want %s in it", logged, want)
		}
	}

	stream, err = client.GetMetadataAllocated(t.Context(), &csi.GetMetadataAllocatedRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	expectStatus(t, err, codes.InvalidArgument, "snapshot_id is missing")

	delta, err := client.GetMetadataDelta(t.Context(), &csi.GetMetadataDeltaRequest{BaseSnapshotId: "a", TargetSnapshotId: "b"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = delta.Recv()
	expectStatus(t, err, codes.Unimplemented, "method GetMetadataDelta not implemented")
}

func TestNothingIsSentAfterTheTimeIsOver(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	stream := &replay{ctx: ctx} // would panic if it came to send
	if err := stream.SendMsg(&csi.GetMetadataAllocatedResponse{}); !fault.Is(err, fault.Unknown) {
		t.Errorf("got %v, want kind %v", err, fault.Unknown)
	}
}

func TestReplayHandsTheRequestOverOnce(t *testing.T) {
	stream := &replay{req: &csi.GetMetadataAllocatedRequest{SnapshotId: "s"}}
	got := &csi.GetMetadataAllocatedRequest{}
	if err := stream.RecvMsg(got); err != nil || got.GetSnapshotId() != "s" {
		t.Errorf("first: got %v, %v, want the request", got, err)
	}
	if err := stream.RecvMsg(got); !errors.Is(err, io.EOF) {
		t.Errorf("second: got %v, want %v", err, io.EOF)
	}
}
