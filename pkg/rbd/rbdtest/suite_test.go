package rbdtest

import (
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/volid"
)

// newCeph returns a Ceph with everything that tests here need.
func newCeph() *Ceph {
	ceph := New()
	ceph.AddCluster("main").
		AddUser("csi", "KEY-OF-CSI").AddUser("stranger", "KEY-OF-STRANGER", "elsewhere").
		AddOperator("operator", "KEY-OF-OPERATOR").
		AddPool("kube", "team").AddPool("elsewhere").
		AddDataPool("ec", true).AddDataPool("ec-plain", false)
	return ceph
}

func kube() volid.Pool { return volid.Pool{Cluster: "main", Pool: "kube"} }

func TestSuite(t *testing.T) {
	ceph := newCeph()
	Suite(t, Fixture{
		Tools:       ceph,
		Process:     func(*testing.T) rbd.Clusters { return ceph.Process() },
		Pool:        kube(),
		Namespace:   volid.Pool{Cluster: "main", Pool: "kube", Namespace: "team"},
		OtherPool:   volid.Pool{Cluster: "main", Pool: "elsewhere"},
		DataPool:    "ec",
		BadDataPool: "ec-plain",
		WrongKey:    params.Credentials{User: "csi", Key: params.NewSecret("KEY-OF-STRANGER")},
		UnknownUser: params.Credentials{User: "nobody", Key: params.NewSecret("KEY-OF-CSI")},
		Stranger:    params.Credentials{User: "stranger", Key: params.NewSecret("KEY-OF-STRANGER")},
		Operator:    params.Credentials{User: "operator", Key: params.NewSecret("KEY-OF-OPERATOR")},
	})
}
