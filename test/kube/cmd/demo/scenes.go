package main

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rbd-csi/rbd-csi/test/demo/story"
	"github.com/rbd-csi/rbd-csi/test/kube/lab"
)

// registered is how long a driver that runs may take to be seen.
const registered = 5 * time.Second

// isDefault matches what kubectl says of the default StorageClass.
var isDefault = regexp.MustCompile(`IsDefaultClass: +Yes`)

// A scene is one thing that happens to the StatefulSet.
type scene struct {
	title string
	play  func(*stage)
}

var scenes = []scene{
	{"Kubernetes, Ceph, and the driver by its chart", bringUp},
	{"A StatefulSet \"web\" with two replicas and 1 GiB each", createStatefulSet},
	{"Its pods write", writePods},
	{"Pod web-0 is deleted, and keeps its data", deletePod},
	{"Scaled up to three replicas, down to one, and up again", scale},
	{"The claim grows to 2 GiB while the pod writes", grow},
	{"The node plug-in's pod is deleted under a pod that writes", deletePlugin},
	{"A claim that cannot be served, and what to do about it", mistake},
}

func bringUp(s *stage) {
	s.Err = s.up()
	if s.Err != nil {
		return
	}
	for _, line := range s.settings() {
		s.Command("$ ", line, "")
	}
	s.Show("kubectl", "get", "nodes")
	s.Show("ceph", "status")
	s.ShowLine("helm status " + lab.Release + " -n " + lab.Namespace + " | head -n 6")
	s.Show("kubectl", "-n", lab.Namespace, "rollout", "status", "deployment/rbd-csi-controller", "--timeout=2m")
	s.Show("kubectl", "-n", lab.Namespace, "rollout", "status", "daemonset/rbd-csi-node", "--timeout=2m")
	pods := s.Show("kubectl", "-n", lab.Namespace, "get", "pods")
	s.Check(!strings.Contains(pods, "0/"), "controller, node plug-in and the pod of the mappings' workers run")
	drivers := s.Show("kubectl", "get", "csinodes", "-o", "custom-columns=NODE:.metadata.name,DRIVERS:.spec.drivers[*].name")
	s.Check(strings.Contains(drivers, lab.Driver), "the driver is registered with the node's kubelet")
	class := s.Show("kubectl", "describe", "storageclass", lab.Class)
	s.Check(isDefault.MatchString(class), "StorageClass %s is the default", lab.Class)
	if kind := story.GrowingFilesystem(); kind != "ext4" {
		s.Tell("It says %s, because root lacks CAP_SYS_RESOURCE on this machine, and no mounted ext4 grows without it.", kind)
	}
}

func createStatefulSet(s *stage) {
	s.clearLast()
	s.Tell("The manifest is that of docs/quick-start.md: a Service, and a StatefulSet with volumeClaimTemplates and no word about " +
		"storage but how much.")
	s.Show("kubectl", "apply", "-f", webManifest)
	s.rolledOut()
	s.Show("kubectl", "get", "pods", "-l", "app=web")
	s.Tell("Kubernetes made a claim for each replica, and for each claim the driver made an RBD image, named after " +
		"the PersistentVolume:")
	s.showClaims()
	listed := s.Show("rbd", "ls", "-l", lab.Pool)
	for i := range s.web {
		r := newReplica(i)
		r.image = s.imageOf(r.claim)
		volume := s.field("pvc/"+r.claim, ".spec.volumeName")
		s.Check(r.image == lab.Pool+"/"+volume && strings.Contains(listed, volume), "%s is on image %s", r.claim, r.image)
		s.web[i] = r
	}
	s.Tell("Whose it is stands in the image itself; there is no other record.")
	owner := s.Show("rbd", "image-meta", "get", s.web[0].image, "rbd-csi.io/owner")
	s.Check(strings.Contains(owner, `"pvc":"`+s.web[0].claim+`"`), "the image says that it is %s's", s.web[0].claim)
}

func writePods(s *stage) {
	for i := range s.web {
		s.fill(&s.web[i])
	}
	s.showSize(s.web[0])
	status := s.Show("rbd", "status", s.web[0].image)
	s.Check(strings.Count(status, "watcher=") == 1, "the image is open on the node, and only there")
	s.Check(s.web[0].sum != s.web[1].sum, "each pod has data of its own")
}

// showSize shows how large the pod's filesystem is.
func (s *stage) showSize(r replica) { s.inPod(r.pod, "df", "-h", data) }

func deletePod(s *stage) {
	r := s.web[0]
	before := s.field("pod/"+r.pod, ".metadata.uid")
	s.deleteAndWait(r)
	s.Show("kubectl", "get", "pods", "-l", "app=web")
	after := s.field("pod/"+r.pod, ".metadata.uid")
	s.Check(before != after, "%s is another pod than before", r.pod)
	s.same(r)
}

// deleteAndWait deletes a pod, and waits for the one that comes in its place.
func (s *stage) deleteAndWait(r replica) {
	s.Show("kubectl", "delete", "pod", r.pod)
	s.Show("kubectl", "wait", "--for=create", "pod/"+r.pod, "--timeout=1m")
	s.Show("kubectl", "wait", "--for=condition=Ready", "pod/"+r.pod, "--timeout=2m")
}

func scale(s *stage) {
	s.scaleTo(3)
	s.rolledOut()
	third := newReplica(2)
	third.image = s.imageOf(third.claim)
	s.Check(slices.Contains(s.images(lab.Pool), strings.TrimPrefix(third.image, lab.Pool+"/")), "web-2 has image %s", third.image)
	s.fill(&third)
	s.Tell("Down again. Pods go, claims stay, and so do their volumes:")
	s.scaleTo(1)
	s.Show("kubectl", "wait", "--for=delete", "pod/web-1", "pod/web-2", "--timeout=2m")
	s.Show("kubectl", "get", "pods", "-l", "app=web")
	claims := s.showClaims()
	s.Check(strings.Count(claims, "pvc-") == 3, "three claims have their volumes, and there is one pod")
	s.Tell("And up: each replica finds its own.")
	s.scaleTo(3)
	s.rolledOut()
	s.same(s.web[1])
	s.same(third)
	s.Tell("The third is not needed any more. With the claim its image goes:")
	s.scaleTo(2)
	s.Show("kubectl", "wait", "--for=delete", "pod/web-2", "--timeout=2m")
	s.Show("kubectl", "delete", "pvc", third.claim)
	s.gone(third.image)
	s.Check(!strings.Contains(s.Show("rbd", "ls", lab.Pool), strings.TrimPrefix(third.image, lab.Pool+"/")), "image %s is gone", third.image)
}

func (s *stage) scaleTo(replicas int) {
	s.Show("kubectl", "scale", "statefulset", "web", "--replicas="+strconv.Itoa(replicas))
}

func (s *stage) rolledOut() {
	s.Show("kubectl", "rollout", "status", "statefulset/web", "--timeout=3m")
}

// gone waits until images are neither in their pool nor in the trash, where their space is freed.
func (s *stage) gone(images ...string) {
	s.Await("the driver has freed what is deleted", func() (bool, error) {
		listed, err := s.Run("rbd", "ls", lab.Pool)
		if err != nil {
			return false, err
		}
		trash, err := s.Run("rbd", "trash", "ls", "--all", lab.Pool)
		return !slices.ContainsFunc(images, func(image string) bool {
			return strings.Contains(listed+trash, strings.TrimPrefix(image, lab.Pool+"/"))
		}), err
	})
}

func grow(s *stage) {
	r := s.web[0]
	s.write(r)
	s.writesOn(20)
	s.Show("kubectl", "patch", "pvc", r.claim, "-p", `{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}`)
	s.Show("kubectl", "wait", "--for=jsonpath={.status.capacity.storage}=2Gi", "pvc/"+r.claim, "--timeout=3m")
	s.writesOn(20)
	s.showClaims()
	info := s.Show("rbd", "info", r.image)
	s.Check(strings.Contains(info, "size 2 GiB"), "the image has grown")
	s.showSize(r)
	kilobytes, err := strconv.Atoi(s.quietly("kubectl", "exec", r.pod, "--", "sh", "-c", "df -Pk "+data+" | awk 'NR == 2 { print $2 }'"))
	if s.Err == nil {
		s.Err = err
	}
	s.Check(kilobytes > 2<<20*9/10, "the filesystem has grown with it")
	s.endWriting(r)
	s.same(r)
}

func deletePlugin(s *stage) {
	r := s.web[1]
	const selector = "app.kubernetes.io/component=node"
	s.Tell("As in an upgrade of the driver. The volume of %s is served by a process in the pod of the workers, which stays.", r.pod)
	pods := func() {
		s.Show("kubectl", "-n", lab.Namespace, "get", "pods", "-l", "app.kubernetes.io/component in (node, workers)")
	}
	pods()
	before := s.plugin(selector)
	s.write(r)
	s.writesOn(20)
	if s.Err != nil {
		return
	}
	count := s.writer.Count()
	s.Show("kubectl", "-n", lab.Namespace, "delete", "pod", "-l", selector)
	// What a DaemonSet says of itself may be of the time before.
	var after string
	s.Await("there is another", func() (bool, error) {
		after = s.plugin(selector)
		return after != "" && after != before, s.Err
	})
	s.Show("kubectl", "-n", lab.Namespace, "wait", "--for=condition=Ready", "pod/"+after, "--timeout=2m")
	s.writesOn(20)
	pods()
	s.Check(s.plugin(selector) == after, "the node plug-in runs in another pod, %s", after)
	if s.Err != nil {
		return
	}
	s.Check(s.writer.Count() >= count+20, "%s has written %d records meanwhile", r.pod, s.writer.Count()-count)
	s.endWriting(r)
	restarts := s.field("pod/"+r.pod, ".status.containerStatuses[0].restartCount")
	s.Check(restarts == "0", "%s was not restarted", r.pod)
	s.Tell("The new plug-in takes over what the old one mounted: %s can go, and come again.", r.pod)
	s.deleteAndWait(r)
	s.same(r)
}

// plugin is the name of the node plug-in's pod.
func (s *stage) plugin(selector string) string {
	return s.quietly("kubectl", "-n", lab.Namespace, "get", "pods", "-l", selector, "-o", "jsonpath={.items[*].metadata.name}")
}

func mistake(s *stage) {
	s.Tell("A key of this StorageClass is misspelt, and a claim uses the class:")
	s.Show("cat", classManifest)
	s.Show("kubectl", "apply", "-f", classManifest, "-f", claimManifest)
	// Events of the last story's claim of that name may still be there.
	selector := "type=Warning,involvedObject.uid=" + s.field("pvc/"+letters, ".metadata.uid")
	s.Await("somebody says why the claim waits", func() (bool, error) {
		events, err := s.Run("kubectl", "get", "events", "-o", "name", "--field-selector", selector)
		return events != "", err
	})
	described := s.Show("kubectl", "describe", "pvc", letters)
	s.Check(strings.Contains(described, "Pending"), "the claim waits")
	s.Check(strings.Contains(described, `did you mean "imageFeatures"?`), "its last event says why, and what to write instead")
	s.Tell("A class cannot be changed, so it is made anew. The claim is served at its next try:")
	s.ShowLine("sed 's/imageFeature:/imageFeatures:/' " + classManifest + " | kubectl replace --force -f -")
	s.Show("kubectl", "wait", "--for=jsonpath={.status.phase}=Bound", "pvc/"+letters, "--timeout=3m")
	image := s.imageOf(letters)
	listed := s.Show("rbd", "ls", lab.Pool)
	s.Check(strings.Contains(listed, strings.TrimPrefix(image, lab.Pool+"/")), "%s is on image %s", letters, image)
	s.Tell("That was only to show it; claim and class go again.")
	s.Show("kubectl", "delete", "-f", claimManifest, "-f", classManifest)
	s.gone(image)
}

// clearLast deletes what the last story left, however far it came.
func (s *stage) clearLast() {
	if s.Err != nil {
		return
	}
	left := s.quietly("kubectl", "get", "statefulsets,services,pvc", "-l", "app=web", "-o", "name")
	left += s.quietly("kubectl", "get", "-f", classManifest, "-f", claimManifest, "--ignore-not-found", "-o", "name")
	if left == "" {
		return
	}
	s.Tell("What the last story left is deleted, and it begins anew.")
	images := s.ownImages()
	s.Show("kubectl", "delete", "statefulset,service,pvc", "-l", "app=web", "--timeout=3m")
	s.quietly("kubectl", "delete", "-f", claimManifest, "-f", classManifest, "--ignore-not-found", "--timeout=3m")
	s.gone(images...)
}

// ownImages are the images of the story's claims.
func (s *stage) ownImages() []string {
	const line = `jsonpath={range .items[*]}{.spec.claimRef.namespace}/{.spec.claimRef.name} {.spec.csi.volumeHandle}{"\n"}{end}`
	var images []string
	for line := range strings.Lines(s.quietly("kubectl", "get", "pv", "-o", line)) {
		claim, handle, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.HasPrefix(claim, namespace+"/www-web-") || claim == namespace+"/"+letters {
			_, image, _ := strings.Cut(handle, ":")
			images = append(images, image)
		}
	}
	return images
}

// up brings up what does not run yet. What runs is left as it is, unless there is another image of the driver.
func (s *stage) up() error {
	running, err := lab.Open(s.Ctx, s.options.places)
	if err == nil && !s.imageMade {
		ready, cancel := context.WithTimeout(s.Ctx, registered)
		defer cancel()
		if running.AwaitDriver(ready) == nil {
			s.Say("Everything is up already, so the story begins with the StatefulSet.")
			s.use(running)
			return nil
		}
	}
	s.Say("In folders below %s, as processes and containers of this machine. The driver comes as it does for anybody: "+
		"its image, a Secret with the address and key of the Ceph cluster, and its Helm chart.", s.options.places.Build)
	running, err = lab.Up(s.Ctx, lab.Options{Places: s.options.places, Image: s.options.image(), Progress: s.Progress("  ")})
	if err != nil {
		return fmt.Errorf("bring Kubernetes, Ceph and the driver up: %w", err)
	}
	s.use(running)
	return nil
}
