package node

import (
	"os"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/rbd-csi/rbd-csi/test/badinput"
	"github.com/rbd-csi/rbd-csi/test/ceph"
)

var shared = ceph.Share(ceph.Options{})

func TestMain(m *testing.M) { os.Exit(shared.Main(m)) }

func TestBadInput(t *testing.T) {
	m := Start(t, shared.ForTest(t, ceph.Options{}))
	connection, err := grpc.NewClient("unix:"+m.Controller.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	badinput.Run(t, badinput.Driver{
		Controller: m.Controller.ControllerClient,
		Groups:     m.Controller.GroupControllerClient,
		Metadata:   csi.NewSnapshotMetadataClient(connection),
		Node:       m.Node.NodeClient,
		Pool:       m.Pool(),
		User:       m.User,
		Tools:      Tools{Ceph: m.Ceph, Context: t.Context()},
		Directory:  t.TempDir(),
	})
}
