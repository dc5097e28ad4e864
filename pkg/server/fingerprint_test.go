package server

import (
	"fmt"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"
)

func TestFingerprint(t *testing.T) {
	secrets := func() map[string]string {
		many := map[string]string{}
		for i := range 50 {
			many[fmt.Sprint(i)] = "x"
		}
		return many
	}
	prints := newFingerprinter()
	reference := fingerprintOf(t, prints, deleteVolume, &csi.DeleteVolumeRequest{VolumeId: "v", Secrets: secrets()})
	for _, test := range []struct {
		name     string
		prints   *fingerprinter
		method   string
		req      proto.Message
		wantSame bool
	}{
		{"same", prints, deleteVolume, &csi.DeleteVolumeRequest{VolumeId: "v", Secrets: secrets()}, true},
		{"other volume", prints, deleteVolume, &csi.DeleteVolumeRequest{VolumeId: "w", Secrets: secrets()}, false},
		{"no secrets", prints, deleteVolume, &csi.DeleteVolumeRequest{VolumeId: "v"}, false},
		{"same bytes, other method", prints, csi.Controller_DeleteSnapshot_FullMethodName,
			&csi.DeleteSnapshotRequest{SnapshotId: "v", Secrets: secrets()}, false},
		{"other process", newFingerprinter(), deleteVolume, &csi.DeleteVolumeRequest{VolumeId: "v", Secrets: secrets()}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			// Maps come in a new order each time; ten times is enough to notice.
			for range 10 {
				got := fingerprintOf(t, test.prints, test.method, test.req) == reference
				if got != test.wantSame {
					t.Fatalf("got the same fingerprint %v, want %v", got, test.wantSame)
				}
			}
		})
	}
}

func fingerprintOf(t *testing.T, prints *fingerprinter, method string, req proto.Message) fingerprint {
	t.Helper()
	print, err := prints.of(method, req)
	if err != nil {
		t.Fatal(err)
	}
	return print
}
