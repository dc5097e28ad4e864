package librbd

import (
	"testing"

	"github.com/rbd-csi/rbd-csi/pkg/params"
	"github.com/rbd-csi/rbd-csi/pkg/rbd"
	"github.com/rbd-csi/rbd-csi/pkg/rbd/rbdtest"
	"github.com/rbd-csi/rbd-csi/test/ceph"
)

func TestSuite(t *testing.T) {
	l := newLab(t)
	stranger := l.user(t, "stranger", ceph.ProfileRBD("elsewhere"))
	caps := ceph.ProfileRBD()
	caps.Mon += `, allow command "osd blocklist"`
	operator := l.user(t, "operator", caps)
	rbdtest.Suite(t, rbdtest.Fixture{
		Tools:       l.tools,
		Process:     func(t *testing.T) rbd.Clusters { return l.clusters(t, Options{}) },
		Pool:        l.place(),
		Namespace:   l.namespace(),
		OtherPool:   l.other(),
		DataPool:    l.DataPool(),
		BadDataPool: l.addBadData(t),
		WrongKey:    params.Credentials{User: labUser, Key: stranger.Key},
		UnknownUser: params.Credentials{User: "nobody", Key: stranger.Key},
		Stranger:    stranger,
		Operator:    operator,
	})
}
