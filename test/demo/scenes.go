package main

import (
	"context"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/demo/story"
	"github.com/rbd-csi/rbd-csi/test/driver"
)

// A scene is one thing that happens to the StatefulSet.
type scene struct {
	title string
	play  func(*stage)
}

var scenes = []scene{
	{"Ceph, in a folder", startCeph},
	{"The driver: a controller and two nodes", startDriver},
	{"A StatefulSet \"web\" with two replicas and 1 GiB each", createStatefulSet},
	{"Its pods start, and write", startPods},
	{"Pod web-0 is deleted, and starts on the other node", movePod},
	{"Scaled down to one replica, and up again", scale},
	{"The claim grows to 2 GiB while the pod writes", grow},
	{"The driver's processes are killed under a running pod", kill},
	{"An image made by hand, used by a volume written by hand", static},
	{"Requests with a mistake", mistakes},
	{"StatefulSet and claims are deleted", deleteAll},
}

func startCeph(s *stage) {
	s.before, s.Err = driver.Look(s.options.folder)
	s.Tell("A monitor, a manager and an OSD from the distribution's packages, with a pool %q.", pool)
	s.Do("starting Ceph", func() (err error) {
		s.cluster, err = ceph.Start(s.Ctx, ceph.Options{Pools: []string{pool}, ProposeInterval: 50 * time.Millisecond})
		return err
	})
	if s.Err == nil {
		s.Export("CEPH_CONF", s.cluster.Conf())
	}
	s.Show("ceph", "status")
}

func startDriver(s *stage) {
	if s.Err != nil {
		return
	}
	s.Tell("In Kubernetes the controller is a Deployment and the node part a DaemonSet. Here are three " +
		"processes of one binary on one machine; each node has a folder of its own.")
	s.Do("making the Ceph user client."+user+" with profile rbd", s.makeUser)
	s.Do("starting controller, node-a and node-b", func() (err error) {
		if s.controller, err = s.driver.Controller(s.Ctx, "controller"); err != nil {
			return err
		}
		if s.nodeA, err = s.driver.Node(s.Ctx, "node-a"); err != nil {
			return err
		}
		s.nodeB, err = s.driver.Node(s.Ctx, "node-b")
		return err
	})
	s.showProcesses()
}

// makeUser makes the driver's user, whose key and the monitors' addresses are all that it gets.
func (s *stage) makeUser() error {
	if _, err := s.cluster.AddUser(s.Ctx, user, ceph.ProfileRBD(pool)); err != nil {
		return err
	}
	directory, err := s.cluster.ClusterDir(s.Ctx, user)
	if err != nil {
		return err
	}
	s.driver, err = driver.New(driver.Options{
		Binary: s.options.binary, Clusters: map[string]string{clusterName: directory},
		Folder: s.options.folder, Verbosity: 2,
	})
	return err
}

// showProcesses lists the driver's processes and the workers of the mappings.
func (s *stage) showProcesses() {
	if s.Err != nil {
		return
	}
	var pids []string
	for _, p := range []*driver.Process{s.controller, s.nodeA, s.nodeB} {
		if pid := p.PID(); pid != 0 {
			pids = append(pids, strconv.Itoa(pid))
		}
	}
	left, err := driver.Look(s.options.folder)
	if err != nil {
		s.Err = err
		return
	}
	s.Show("ps", "-o", "pid,rss,etime,args", "-p", strings.Join(append(pids, left.Workers...), ","))
}

func createStatefulSet(s *stage) {
	s.Tell("Kubernetes makes a claim for each replica, data-web-0 and data-web-1. For each claim " +
		"external-provisioner calls CreateVolume, and the driver makes an RBD image of the same name.")
	s.chooseFilesystem()
	s.web = []*replica{newReplica(0), newReplica(1)}
	for _, r := range s.web {
		s.provision(r)
	}
	listed := s.Show("rbd", "ls", "-l", pool)
	for _, r := range s.web {
		s.Check(strings.Contains(listed, r.volume.Name), "%s is an image", r.volume.Handle)
	}
	s.Tell("Whose it is stands in the image itself; there is no other record.")
	meta := s.Show("rbd", "image-meta", "list", s.web[0].image())
	s.Check(strings.Contains(meta, `"pvc":"data-web-0"`), "the image says that it is data-web-0's")
}

// chooseFilesystem takes one that can grow while it is mounted, on this machine.
func (s *stage) chooseFilesystem() {
	s.fsType = story.GrowingFilesystem()
	if s.fsType != "ext4" {
		s.Tell("The class says %s, because root lacks CAP_SYS_RESOURCE on this machine and no mounted ext4 can grow "+
			"without it.", s.fsType)
	}
}

func startPods(s *stage) {
	s.Tell("The scheduler chooses node-a for web-0 and node-b for web-1. external-attacher calls " +
		"ControllerPublishVolume, which records in the image who may write to it. kubelet calls NodeStageVolume, " +
		"which maps, formats and mounts, and NodePublishVolume, which shows the mount to the pod.")
	s.start(s.web[0], s.nodeA)
	s.start(s.web[1], s.nodeB)
	s.Show("findmnt", "-o", "SOURCE,FSTYPE,SIZE,TARGET", s.web[0].path())
	s.Show("rbd", "status", s.web[0].image())
	s.Tell("The pods write.")
	for _, r := range s.web {
		s.fill(r)
	}
	s.showSize(s.web[0])
}

// fill writes 64 MiB into the replica's volume and remembers the checksum.
func (s *stage) fill(r *replica) {
	r.show(s, "dd", "if=/dev/urandom", "of=data/blob", "bs=1M", "count=64", "conv=fsync", "status=none")
	r.sum = r.checksum(s)
}

// showSize shows how large the pod's filesystem is.
func (s *stage) showSize(r *replica) {
	r.show(s, "df", "-h", "--output=source,fstype,size,used,avail,pcent", "data")
}

// same checks that the replica's data are what fill has written.
func (s *stage) same(r *replica) {
	sum := r.checksum(s)
	s.Check(sum == r.sum, "the data of %s are what it wrote", r.pod)
}

func movePod(s *stage) {
	s.Tell("As long as node-a has the volume, no other node gets it:")
	s.refusedElsewhere(s.web[0], s.nodeB)
	s.Tell("kubelet on node-a calls NodeUnpublishVolume and NodeUnstageVolume, external-attacher " +
		"ControllerUnpublishVolume; then web-0 starts on node-b.")
	s.stop(s.web[0])
	s.start(s.web[0], s.nodeB)
	s.same(s.web[0])
	s.Show("rbd", "status", s.web[0].image())
}

func (s *stage) refusedElsewhere(r *replica, node *driver.Process) {
	if s.Err != nil {
		return
	}
	s.refused("ControllerPublishVolume", s.controller, r.claim+" for "+node.Name, "held by node", func(ctx context.Context) error {
		id, err := node.ID(ctx)
		if err == nil {
			_, err = s.controller.Attach(ctx, r.volume, id)
		}
		return err
	})
}

func scale(s *stage) {
	s.Tell("With replicas: 1 the pod web-1 goes, and its claim stays: no DeleteVolume.")
	s.stop(s.web[1])
	listed := s.Show("rbd", "ls", pool)
	s.Check(strings.Contains(listed, s.web[1].volume.Name), "the volume of data-web-1 is still there")
	s.Tell("With replicas: 2 web-1 comes back, this time on node-a, to the same claim.")
	s.start(s.web[1], s.nodeA)
	s.same(s.web[1])
}

func grow(s *stage) {
	const bytes = 2 << 30
	r := s.web[0]
	s.Tell("external-resizer calls ControllerExpandVolume, kubelet NodeExpandVolume. The pod writes all the while.")
	s.write(r)
	s.writesOn(r, 20)
	s.request("ControllerExpandVolume", s.controller, r.claim+" to 2 GiB", func(ctx context.Context) error {
		_, err := s.controller.Expand(ctx, r.volume, bytes)
		return err
	})
	if s.Err == nil {
		s.request("NodeExpandVolume", r.node, r.claim, func(ctx context.Context) error {
			return r.node.ExpandOnNode(ctx, r.volume, r.pod, bytes)
		})
	}
	s.writesOn(r, 20)
	s.showSize(r)
	s.Show("rbd", "info", r.image())
	var filesystem unix.Statfs_t
	if s.Err == nil {
		s.Err = unix.Statfs(r.path(), &filesystem)
	}
	size := int64(filesystem.Blocks) * filesystem.Bsize
	s.Check(size > bytes*9/10, "the filesystem has grown with the volume")
	s.endWriting(r)
	s.same(r)
}

func kill(s *stage) {
	r := s.web[1]
	s.Tell("An upgrade gone wrong: controller and node-a are killed by SIGKILL while web-1 runs on node-a. " +
		"Each mapping is served by a worker process of its own, which stays.")
	s.write(r)
	s.writesOn(r, 20)
	if s.Err != nil {
		return
	}
	s.Show("kill", "-9", strconv.Itoa(s.controller.PID()), strconv.Itoa(s.nodeA.PID()))
	s.Do("waiting until they are gone", func() error {
		return errors.Join(s.controller.Kill(), s.nodeA.Kill())
	})
	before := r.writer.Count()
	s.writesOn(r, 50)
	s.showProcesses()
	s.Check(r.writer.Count() >= before+50, "the pod has written %d records since", r.writer.Count()-before)
	s.Do("starting controller and node-a again", func() error {
		if err := s.controller.Start(s.Ctx); err != nil {
			return err
		}
		return s.nodeA.Start(s.Ctx)
	})
	s.writesOn(r, 20)
	s.Tell("kubelet repeats what it does not know the outcome of, and the new process finds the old one's work:")
	s.request("NodeStageVolume", s.nodeA, r.claim+" again", func(ctx context.Context) error {
		return s.nodeA.Stage(ctx, r.volume, r.attached)
	})
	s.request("NodePublishVolume", s.nodeA, r.claim+" again", func(ctx context.Context) error {
		return s.nodeA.Publish(ctx, r.volume, r.attached, r.pod)
	})
	s.endWriting(r)
	s.same(r)
}

func static(s *stage) {
	s.Tell("An image that is there already becomes a volume by its handle, which is what Ceph people " +
		"type: CLUSTER:POOL/IMAGE. The PersistentVolume is written by hand; nothing is imported. This image is " +
		"empty, so the first NodeStageVolume formats it; an image with a filesystem is used as it is.")
	s.Show("rbd", "create", "--size", "1G", pool+"/foo")
	foo := &replica{pod: "one-off", claim: "foo", volume: driver.Volume{
		Name: "foo", Handle: clusterName + ":" + pool + "/foo", Context: map[string]string{"mapper": "fuse"},
	}}
	s.start(foo, s.nodeB)
	s.Show("findmnt", "-o", "SOURCE,FSTYPE,SIZE,TARGET", foo.path())
	s.fill(foo)
	s.stop(foo)
	s.Tell("The driver deletes only what it made; this image is its owner's.")
	s.refused("DeleteVolume", s.controller, "foo", "not made by this driver", func(ctx context.Context) error {
		return s.controller.Delete(ctx, foo.volume)
	})
	s.start(foo, s.nodeA)
	s.same(foo)
	s.stop(foo)
	s.Show("rbd", "rm", "--no-progress", pool+"/foo")
}

func mistakes(s *stage) {
	s.Tell("A parameter of the StorageClass is misspelt:")
	claim := s.claim(newReplica(2))
	claim.Parameters["imageFeature"] = "layering"
	s.refused("CreateVolume", s.controller, "a claim", "imageFeature", func(ctx context.Context) error {
		_, err := s.controller.Create(ctx, claim)
		return err
	})
	s.Tell("The secret holds a key that is not the user's:")
	claim = s.claim(newReplica(2))
	claim.Secrets = map[string]string{"userID": user, "userKey": wrongKey()}
	s.refused("CreateVolume", s.controller, "a claim", "not authenticated", func(ctx context.Context) error {
		_, err := s.controller.Create(ctx, claim)
		return err
	})
	listed := s.Show("rbd", "ls", pool)
	s.Check(len(strings.Fields(listed)) == len(s.web), "neither made anything")
}

// wrongKey returns a well-formed key that no cluster knows: type 1 (AES), a time, 16 bytes.
func wrongKey() string {
	key := append([]byte{1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 16, 0}, []byte("not the right one"[:16])...)
	return base64.StdEncoding.EncodeToString(key)
}

func deleteAll(s *stage) {
	s.Tell("The pods go, then the claims. DeleteVolume moves an image to the trash, which is the " +
		"queue for freeing its space in the background.")
	for _, r := range s.web {
		s.stop(r)
	}
	for _, r := range s.web {
		s.destroy(r)
	}
	s.Await("the trash is empty", func() (bool, error) {
		listed, err := s.Run("rbd", "trash", "ls", pool)
		return listed == "", err
	})
	s.Check(s.Show("rbd", "ls", pool) == "", "no image is left")
	objects := s.Show("rados", "-p", pool, "ls")
	s.Check(!strings.Contains(objects, "rbd_data") && !strings.Contains(objects, "rbd_header"), "no object of an image is left")
	if s.Err != nil {
		return
	}
	left, err := driver.Look(s.options.folder)
	s.Err = err
	s.Check(left.Without(s.before).Empty(), "mounts, loop devices, workers and mappings that are left: %s", left.Without(s.before))
}
