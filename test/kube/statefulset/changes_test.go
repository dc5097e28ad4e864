package statefulset_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rbd-csi/rbd-csi/test/kube/lab"
)

// reader is an account for a program that makes backups of a namespace.
const reader = `apiVersion: v1
kind: ServiceAccount
metadata: {name: backup}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: backup}
rules:
  - {apiGroups: [snapshot.storage.k8s.io], resources: [volumesnapshots], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: backup}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: backup}
subjects: [{kind: ServiceAccount, name: backup}]
`

// TestChangedBlocks asks, as a program that makes backups does, what is in a snapshot and what changed until the next.
func TestChangedBlocks(t *testing.T) {
	t.Parallel()
	s := tell(t, "changed-blocks")
	s.Apply(reader + "---\n" + claim{name: "disk", size: "64Mi", spec: "volumeMode: Block"}.String() + "---\n" + blockPod("writer"))
	s.Ready("writer")
	s.writesObject(2)
	first := s.takes("first", "disk")
	s.writesObject(5)
	s.takes("second", "disk")
	client, audience := s.metadataService()
	token := s.token("backup", audience)

	s.part("a snapshot has what was written before", func(s *story) {
		s.sameObjects("allocated in the first", s.allocated(client, token, "first"), 2)
		s.sameObjects("allocated in the second", s.allocated(client, token, "second"), 2, 5)
	})
	s.part("between two is what was written between", func(s *story) {
		s.sameObjects("changed from the first to the second", s.changed(client, token, s.snapshotHandle(first), "second"), 5)
	})
	s.part("who may not read the snapshots is not told", func(s *story) {
		stream, err := client.GetMetadataAllocated(s.Context(), &api.GetMetadataAllocatedRequest{
			SecurityToken: s.token("default", audience), Namespace: s.Namespace, SnapshotName: "first",
		})
		if err == nil {
			_, err = stream.Recv()
		}
		if code := status.Code(err); code != codes.PermissionDenied {
			s.Errorf("asked with another account: got %v, want %s", err, codes.PermissionDenied)
		}
	})
}

// objectSize is that of the objects of an image, which is how exactly changes are known.
const objectSize = 4 << 20

// writesObject fills one object of the device with random bytes.
func (s *story) writesObject(n int) {
	s.Helper()
	s.Sh("writer", fmt.Sprintf("dd if=/dev/urandom of=/dev/xvda bs=%d seek=%d count=1 conv=fsync 2>/dev/null", objectSize, n))
}

// snapshotHandle is the driver's handle of a snapshot.
func (s *story) snapshotHandle(object snapshotObject) string {
	s.Helper()
	return s.Kubectl("get", "volumesnapshotcontent", object.Status.Content, "--output", "jsonpath={.status.snapshotHandle}")
}

// metadataService finds the service by its object, and connects to it. Names of services are known in pods only, so the name is
// checked in the certificate, and the service's address is taken.
func (s *story) metadataService() (client api.SnapshotMetadataClient, audience string) {
	s.Helper()
	var service struct {
		Spec struct {
			Address  string `json:"address"`
			Audience string `json:"audience"`
			CACert   []byte `json:"caCert"`
		} `json:"spec"`
	}
	s.Must(json.Unmarshal([]byte(s.Kubectl("get", "snapshotmetadataservice", lab.Driver, "--output", "json")), &service))
	host, port, err := net.SplitHostPort(service.Spec.Address)
	s.Must(err)
	name, namespace, _ := strings.Cut(host, ".")
	address := s.Kubectl("get", "service", name, "--namespace", namespace, "--output", "jsonpath={.spec.clusterIP}")
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(service.Spec.CACert) {
		s.Fatalf("caCert of the SnapshotMetadataService: got %q, want a certificate", service.Spec.CACert)
	}
	connection, err := grpc.NewClient("passthrough:///"+net.JoinHostPort(address, port), grpc.WithTransportCredentials(
		credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: host, MinVersion: tls.VersionTLS12})))
	s.Must(err)
	s.Cleanup(func() {
		if err := connection.Close(); err != nil {
			s.Errorf("close the connection: %v", err)
		}
	})
	return api.NewSnapshotMetadataClient(connection), service.Spec.Audience
}

// token is one of an account of the namespace, for an audience.
func (s *story) token(account, audience string) string {
	s.Helper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}}}
	token, err := s.API.CoreV1().ServiceAccounts(s.Namespace).CreateToken(s.Context(), account, request, metav1.CreateOptions{})
	s.Must(err)
	return token.Status.Token
}

// allocated asks what a snapshot has, one piece at a time, so that the list is of several answers.
func (s *story) allocated(client api.SnapshotMetadataClient, token, snapshot string) []*api.BlockMetadata {
	s.Helper()
	stream, err := client.GetMetadataAllocated(s.Context(), &api.GetMetadataAllocatedRequest{
		SecurityToken: token, Namespace: s.Namespace, SnapshotName: snapshot, MaxResults: 1,
	})
	s.Must(err)
	return blocks(s, stream)
}

// changed asks what changed from one snapshot to another.
func (s *story) changed(client api.SnapshotMetadataClient, token, base, target string) []*api.BlockMetadata {
	s.Helper()
	stream, err := client.GetMetadataDelta(s.Context(), &api.GetMetadataDeltaRequest{
		SecurityToken: token, Namespace: s.Namespace, BaseSnapshotId: base, TargetSnapshotName: target,
	})
	s.Must(err)
	return blocks(s, stream)
}

// blocks reads a stream of answers to its end.
func blocks[T interface{ GetBlockMetadata() []*api.BlockMetadata }](s *story, stream interface {
	Recv() (T, error)
	Context() context.Context
}) []*api.BlockMetadata {
	s.Helper()
	var all []*api.BlockMetadata
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		s.Must(err)
		all = append(all, answer.GetBlockMetadata()...)
	}
}

// sameObjects checks that pieces of a device are whole objects, and which.
func (s *story) sameObjects(what string, pieces []*api.BlockMetadata, want ...int) {
	s.Helper()
	var got []int
	for _, piece := range pieces {
		for offset := piece.GetByteOffset(); offset < piece.GetByteOffset()+piece.GetSizeBytes(); offset += objectSize {
			got = append(got, int(offset/objectSize))
		}
	}
	s.Same(what+", objects", fmt.Sprint(got), fmt.Sprint(want))
}
