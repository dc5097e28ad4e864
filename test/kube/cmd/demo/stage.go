package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/rbd-csi/rbd-csi/test/demo/story"
	"github.com/rbd-csi/rbd-csi/test/kube/lab"
)

// The objects of the story, as the manifests name them.
const (
	webManifest   = "deploy/kubernetes/example/statefulset.yaml"
	classManifest = "test/kube/cmd/demo/class.yaml"
	claimManifest = "test/kube/cmd/demo/claim.yaml"
	namespace     = "default"     // where one is who types nothing else
	letters       = "old-letters" // the claim of claimManifest
	data          = "/usr/share/nginx/html"
)

// A stage is where the scenes play.
type stage struct {
	*story.Stage
	options   options
	imageMade bool // the driver's image was made by this process
	lab       *lab.Lab
	web       [2]replica
	writer    *story.Writer // nil while none writes
}

// A replica is one of the StatefulSet's that stay until the end.
type replica struct {
	pod   string // web-0
	claim string // www-web-0
	image string // POOL/pvc-...
	sum   string // of the file that fill wrote
}

// newReplica returns the replica of that number.
func newReplica(number int) replica {
	pod := fmt.Sprintf("web-%d", number)
	return replica{pod: pod, claim: "www-" + pod}
}

// quietly runs a command without a word, and returns its output without blanks around it.
func (s *stage) quietly(command ...string) string {
	if s.Err != nil {
		return ""
	}
	output, err := s.Run(command...)
	s.Err = err
	return strings.TrimSpace(output)
}

// field asks Kubernetes for one field of an object.
func (s *stage) field(object, path string) string {
	return s.quietly("kubectl", "get", object, "-o", "jsonpath={"+path+"}")
}

// inPod runs a command in a pod, and prints it as an operator would type it.
func (s *stage) inPod(pod string, command ...string) string {
	return s.Show(append([]string{"kubectl", "exec", pod, "--"}, command...)...)
}

// fill writes 64 MiB into the replica's volume and remembers the checksum.
func (s *stage) fill(r *replica) {
	s.inPod(r.pod, "dd", "if=/dev/urandom", "of="+data+"/blob", "bs=1M", "count=64", "conv=fsync")
	r.sum = s.checksum(*r)
}

// checksum returns the sum that sha256sum prints for the file that fill writes.
func (s *stage) checksum(r replica) string {
	sum, _, _ := strings.Cut(s.inPod(r.pod, "sha256sum", data+"/blob"), " ")
	return sum
}

// same checks that the replica's data are what fill has written, on the volume that it had.
func (s *stage) same(r replica) {
	image := s.imageOf(r.claim)
	s.Check(image == r.image, "the volume of %s is %s, as before", r.pod, r.image)
	sum := s.checksum(r)
	s.Check(sum == r.sum && sum != "", "the data of %s are what it wrote", r.pod)
}

// imageOf returns the claim's image in Ceph, as Ceph's tools take it.
func (s *stage) imageOf(claim string) string {
	volume := s.field("pvc/"+claim, ".spec.volumeName")
	if s.Err != nil {
		return ""
	}
	handle := s.field("pv/"+volume, ".spec.csi.volumeHandle")
	_, image, _ := strings.Cut(handle, ":")
	return image
}

// images lists the images of a pool.
func (s *stage) images(pool string) []string { return strings.Fields(s.quietly("rbd", "ls", pool)) }

// showClaims lists the StatefulSet's claims in the columns that matter here.
func (s *stage) showClaims() string {
	return s.Show("kubectl", "get", "pvc", "-l", "app=web", "-o",
		"custom-columns=CLAIM:.metadata.name,VOLUME:.spec.volumeName,SIZE:.status.capacity.storage")
}

// appendRecords is what a pod's shell does: it appends what it is told and says so when it is on disk, and ends when it is told
// nothing more, also because this process was killed.
const appendRecords = `while read r; do echo "$r" >>log; sync log; echo; done`

// write begins to write records in a pod.
func (s *stage) write(r replica) {
	if s.Err != nil {
		return
	}
	command := []string{
		"kubectl", "exec", "-i", r.pod, "--", "sh", "-c",
		"set -e; cd " + data + "; " + appendRecords,
	}
	s.Say("A shell in %s appends records, which have checksums, each on disk before the next:", r.pod)
	s.Command("$ ", story.Quoted(command...)+" &", "")
	s.writer, s.Err = writeRecords(s.Prepare(s.Ctx, command...))
}

// writeRecords begins to write records by a command that reads a record from its input and answers when it is on disk.
func writeRecords(shell *exec.Cmd) (*story.Writer, error) {
	var said bytes.Buffer
	shell.Stderr = &said
	tell, err := shell.StdinPipe()
	if err != nil {
		return nil, err
	}
	answers, err := shell.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := shell.Start(); err != nil {
		return nil, err
	}
	heard := bufio.NewReader(answers)
	write := func(record string) error {
		_, err := io.WriteString(tell, record)
		if err == nil {
			_, err = heard.ReadString('\n')
		}
		if err != nil {
			return fmt.Errorf("%w: %s", err, said.String())
		}
		return nil
	}
	return story.NewWriter(write, func() error {
		tell.Close() // its end is what the shell waits for
		if err := shell.Wait(); err != nil {
			return fmt.Errorf("%s: %w: %s", story.Quoted(shell.Args...), err, said.String())
		}
		return nil
	}), nil
}

// writesOn sees that the writer goes on.
func (s *stage) writesOn(records int) {
	if s.Err == nil {
		ctx, cancel := context.WithTimeout(s.Ctx, time.Minute)
		defer cancel()
		s.Err = s.writer.Writes(ctx, records)
	}
}

// endWriting ends the writer and reads everything back.
func (s *stage) endWriting(r replica) {
	if s.Err != nil {
		return
	}
	writer := s.writer
	s.writer = nil
	written, err := writer.Stop()
	if s.Err = err; err != nil {
		return
	}
	read, err := story.CountRecords(strings.NewReader(s.quietly("kubectl", "exec", r.pod, "--", "cat", data+"/log")))
	if s.Err == nil {
		s.Err = err
	}
	s.Check(written == read, "%d records were written and synced without an error, %d are there", written, read)
}

// silence ends the writer, if one writes.
func (s *stage) silence() {
	if s.writer != nil {
		s.writer.Abandon()
		s.writer = nil
	}
}

// lookAround says how to use what runs.
func (s *stage) lookAround() {
	s.Line("")
	s.Line("To look around, as root:")
	s.Line("")
	for _, line := range append(s.settings(),
		"kubectl get pods,pvc               # the StatefulSet web",
		"kubectl exec -it web-0 -- sh       # its volume is at "+data,
		"kubectl delete pod web-0           # comes back with the same volume",
		"kubectl -n "+lab.Namespace+" get pods        # the driver",
		"rbd ls -l "+lab.Pool+"                     # the images",
	) {
		s.Line("    %s", line)
	}
	s.Line("")
	s.Line("To play it again: make demo. To take everything down: make demo-down. A reboot does that, too.")
}

// settings are what one types before the commands.
func (s *stage) settings() []string {
	return []string{
		"export KUBECONFIG=" + s.lab.Kube.Kubeconfig(),
		"export CEPH_CONF=" + s.lab.Ceph.Conf(),
		"export PATH=" + s.path() + ":$PATH",
	}
}

// path is where kubectl and helm are.
func (s *stage) path() string {
	return s.lab.Kube.Binaries() + ":" + filepath.Join(s.options.top(), "build")
}

// opened says that what should be brought up is up, at least in part, so that it can be asked.
func (s *stage) opened() bool {
	running, err := lab.Open(s.Ctx, s.options.places)
	if err == nil {
		s.use(running)
	}
	return err == nil
}

// use has all commands use what runs.
func (s *stage) use(running *lab.Lab) {
	s.lab = running
	s.Environ = append(s.Environ, running.Kube.Environ()...)
	s.Environ = append(s.Environ, "CEPH_CONF="+running.Ceph.Conf(), "PATH="+s.path()+":"+os.Getenv("PATH"))
}

// lastEvents prints what Kubernetes and the driver complained of last.
func (s *stage) lastEvents() {
	driver := "kubectl -n " + lab.Namespace + " logs --prefix --tail=300 -c driver -l app.kubernetes.io/component="
	complaints := " | grep '] [EW][0-9]' | tail -n 6"
	warnings := " --field-selector type=Warning --sort-by .metadata.creationTimestamp | tail -n 8"
	for _, question := range []string{
		"kubectl get pods --all-namespaces",
		"kubectl get pvc",
		"kubectl get events" + warnings,
		"kubectl -n " + lab.Namespace + " get events" + warnings,
		driver + "controller" + complaints,
		driver + "node" + complaints,
	} {
		output, err := s.Run("sh", "-c", question)
		if err != nil && output == "" {
			output = "nothing"
		}
		s.Command("$ ", question, output)
	}
}

// tail is the last lines of a text.
func tail(text string, count int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-count):], "\n")
}
