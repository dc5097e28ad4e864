package statefulset_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// writing is the shell line of a pod that appends a number to /data/log, has it written out, and goes on with the
// next. It goes on from the last number when it is started anew. A write that fails ends the container, and so shows as a restart.
const writing = `n=$(tail -n 1 /data/log 2>/dev/null)
n=${n:-0}
while :; do
  n=$((n + 1))
  echo "$n" >>/data/log && sync -d /data/log || { echo "write of $n failed"; exit 1; }
  sleep 0.05
done`

// few is how many numbers a writer has to write to count as writing on.
const few = 20

// A writer is a pod that writes numbers.
type writer struct {
	pod *corev1.Pod
	// log is where the node sees the pod's log, also when there is no kubelet to run a command in the pod.
	log string
}

// writes waits until a pod with the command writing, of a set, is ready.
func (s *story) writes(pod string) *writer {
	s.Helper()
	w := &writer{pod: s.Ready(pod)}
	volume := s.bound("data-" + pod)
	w.log = filepath.Join(s.Lab.Kube.KubeletRoot(), "pods", string(w.pod.UID), "volumes", "kubernetes.io~csi", volume, "mount", "log")
	return w
}

// count is the last number that was written, 0 in an empty log.
func (w *writer) count() (int, error) {
	text, err := os.ReadFile(w.log)
	if err != nil {
		return 0, err
	}
	// The end of a line may be on its way.
	whole, _ := bytes.CutSuffix(text[:bytes.LastIndexByte(text, '\n')+1], []byte("\n"))
	if len(whole) == 0 {
		return 0, nil
	}
	return strconv.Atoi(string(whole[bytes.LastIndexByte(whole, '\n')+1:]))
}

// goesOn waits until a few more numbers are written than there are now.
func (w *writer) goesOn(s *story) {
	s.Helper()
	first := -1
	s.Await(w.pod.Name+" writes on", func(context.Context) (bool, string, error) {
		now, err := w.count()
		if errors.Is(err, fs.ErrNotExist) && first < 0 {
			return false, "it has not begun to write", nil
		}
		if err != nil {
			return false, "", err
		}
		if first < 0 {
			first = now
		}
		return now >= first+few, fmt.Sprintf("it has written up to %d, from %d", now, first), nil
	})
}

// unharmed checks that the pod is the one that it was, that its container never ended, and that no number is missing.
func (w *writer) unharmed(s *story) {
	s.Helper()
	now, err := s.API.CoreV1().Pods(s.Namespace).Get(s.Context(), w.pod.Name, metav1.GetOptions{})
	s.Must(err)
	s.Same("UID of pod "+w.pod.Name, string(now.UID), string(w.pod.UID))
	for _, status := range now.Status.ContainerStatuses {
		if status.RestartCount != 0 {
			s.Errorf("container %s of %s: got %d restarts, want none; before the last one it said: %s", status.Name, w.pod.Name,
				status.RestartCount, s.Kubectl("logs", w.pod.Name, "--previous", "--tail", "5"))
		}
	}
	s.wholeLog(w.pod.Name)
}

// wholeLog checks that the numbers in a pod's log are 1, 2, 3 and so on.
func (s *story) wholeLog(pod string) {
	s.Helper()
	lines := strings.Fields(s.In(pod, "cat", "/data/log"))
	for i, line := range lines {
		if line != strconv.Itoa(i+1) {
			s.Fatalf("line %d in the log of %s: got %q, want %d", i+1, pod, line, i+1)
		}
	}
	if len(lines) < few {
		s.Errorf("numbers in the log of %s: got %d, want %d or more", pod, len(lines), few)
	}
}
