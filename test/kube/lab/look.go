package lab

import (
	"context"
	"fmt"
	"strings"
)

// lastLines is how much of a log is shown.
const lastLines = "40"

// Look returns what an operator would look at when something in a namespace goes wrong: its objects, what `kubectl describe` says of
// those that are not as they should be, the driver's pods, and the ends of the driver's logs. What cannot be had is said in its place.
func (l *Lab) Look(ctx context.Context, namespace string) string {
	var text strings.Builder
	for _, args := range [][]string{
		{"get", "statefulsets,pods,persistentvolumeclaims", "--namespace", namespace, "--output", "wide"},
		{"get", "persistentvolumes,volumeattachments"},
		{"get", "volumesnapshots,volumegroupsnapshots", "--namespace", namespace},
		{"describe", "volumesnapshots,volumegroupsnapshots", "--namespace", namespace},
		{"get", snapshotContents},
		{"describe", "persistentvolumeclaims", "--namespace", namespace},
		{"describe", "pods", "--namespace", namespace},
		{"get", "events", "--namespace", namespace, "--sort-by", ".lastTimestamp"},
		{"get", "pods", "--namespace", Namespace, "--output", "wide"},
	} {
		l.look(ctx, &text, args...)
	}
	for _, component := range []string{"controller", "node", "workers"} {
		args := []string{"logs", "--namespace", Namespace, "--selector", "app.kubernetes.io/component=" + component, "--prefix", "--tail", lastLines}
		if component == "controller" {
			args = append(args, "--all-containers")
		}
		l.look(ctx, &text, args...)
	}
	images, err := l.Ceph.RBD(ctx, "ls", "-l", Pool)
	fmt.Fprintf(&text, "$ rbd ls -l %s\n%s%s\n", Pool, images, shown(err))
	return text.String()
}

func (l *Lab) look(ctx context.Context, text *strings.Builder, args ...string) {
	out, err := l.Kube.Kubectl(ctx, nil, args...)
	fmt.Fprintf(text, "$ kubectl %s\n%s%s\n", strings.Join(args, " "), out, shown(err))
}

func shown(err error) string {
	if err == nil {
		return ""
	}
	return err.Error() + "\n"
}
