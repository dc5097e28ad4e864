package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
	"github.com/rbd-csi/rbd-csi/test/ceph"
	"github.com/rbd-csi/rbd-csi/test/kube"
	"github.com/rbd-csi/rbd-csi/test/kube/progress"
)

// emptyLimit is how long pods may take to end, and the driver to unmount and delete their volumes.
const emptyLimit = 2 * time.Minute

// Down takes the lab down, and is [Down] of its places.
func (l *Lab) Down(ctx context.Context) error { return Down(ctx, l.places, l.progress) }

// Down takes down what is up of a lab: first what uses the driver, while there is a driver that unmounts and deletes; then the
// chart, Kubernetes, and Ceph. Each step is tried whatever became of those before. The error lists what
// went wrong and what is left, and a Down that is repeated goes on with it.
func Down(ctx context.Context, places kube.Places, out io.Writer) error {
	say := progress.NewNarrator(out, "lab")
	var errs []error
	if l, err := Open(ctx, places); err == nil {
		if errs = append(errs, l.Kube.Revive(ctx), l.Empty(ctx), l.Uninstall(ctx)); errors.Join(errs...) == nil {
			say.Line("pods, claims and volumes are deleted, and the chart is uninstalled")
		}
	}
	errs = append(errs, kube.Down(ctx, places.Options().Folder, out))
	errs = append(errs, sweep(places, say))
	errs = append(errs, ceph.TakeDown(ctx, cephFolder(places)))
	say.Line("Ceph is down")
	left, err := Left(ctx, places)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("left behind: %s: %w", strings.Join(left, ", "), fault.Internal)
	}
	if errs = append(errs, err); errors.Join(errs...) == nil {
		errs = append(errs, restoreMachine(places))
	}
	return errors.Join(errs...)
}

// Left lists what a lab has on this machine outside of its folders. After Down it is empty.
func Left(ctx context.Context, places kube.Places) ([]string, error) {
	left, err := kube.Left(ctx, places.Options().Folder)
	if err != nil {
		return nil, err
	}
	more, err := mappings(places)
	return append(left, more...), err
}

// Empty deletes whatever uses the driver, in all namespaces but its own, and its volumes, and waits until nothing of it is left:
// no attachment, no image that the driver made, neither in the pool nor in its trash. The error says what
// does not go.
func (l *Lab) Empty(ctx context.Context) error {
	namespaces, err := l.foreignNamespaces(ctx)
	if err != nil {
		return err
	}
	for _, namespace := range namespaces {
		_, err := l.Kube.Kubectl(ctx, nil, "delete", "--namespace", namespace, "--all", "--wait=false",
			"statefulsets,deployments,daemonsets,jobs,cronjobs,replicasets,pods,persistentvolumeclaims,volumegroupsnapshots,volumesnapshots")
		if err != nil {
			return err
		}
	}
	if err := l.releaseRetained(ctx); err != nil {
		return err
	}
	if err := l.releaseSnapshots(ctx); err != nil {
		return err
	}
	return Await(ctx, emptyLimit, "nothing of the driver is left", l.isEmpty)
}

// foreignNamespaces are those in which users may have pods and claims.
func (l *Lab) foreignNamespaces(ctx context.Context) ([]string, error) {
	out, err := l.Kube.Kubectl(ctx, nil, "get", "namespaces", "-o", "jsonpath={.items[*].metadata.name}")
	return slices.DeleteFunc(strings.Fields(out), func(name string) bool {
		return strings.HasPrefix(name, "kube-") || name == Namespace
	}), err
}

// releaseRetained has volumes that were to be kept deleted by whoever deletes the others.
func (l *Lab) releaseRetained(ctx context.Context) error {
	return l.eachVolume(ctx, func(name, policy string) error {
		args := []string{"patch", "persistentvolume", name, "--patch", `{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`}
		if policy == "static" {
			// Its image is not the driver's to delete.
			args = []string{"delete", "persistentvolume", name, "--wait=false"}
		}
		_, err := l.Kube.Kubectl(ctx, nil, args...)
		return ignore(err, fault.NotFound)
	})
}

// snapshotContents are the kinds of what is a snapshot of the driver, whoever asked for it.
const snapshotContents = "volumegroupsnapshotcontents,volumesnapshotcontents"

// releaseSnapshots has snapshots that were to be kept deleted by whoever deletes the others.
func (l *Lab) releaseSnapshots(ctx context.Context) error {
	const line = `jsonpath={range .items[*]}{.spec.driver} {.kind}/{.metadata.name} {.spec.deletionPolicy}{"\n"}{end}`
	out, err := l.Kube.Kubectl(ctx, nil, "get", snapshotContents, "-o", line)
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[0] != Driver || fields[2] != "Retain" {
			continue
		}
		_, err := l.Kube.Kubectl(ctx, nil, "patch", fields[1], "--type", "merge", "--patch", `{"spec":{"deletionPolicy":"Delete"}}`)
		if err == nil {
			_, err = l.Kube.Kubectl(ctx, nil, "delete", fields[1], "--wait=false")
		}
		if ignore(err, fault.NotFound) != nil {
			return err
		}
	}
	return nil
}

// eachVolume calls f for each volume of the driver with its policy, which for one that the driver did not make is "static".
func (l *Lab) eachVolume(ctx context.Context, f func(name, policy string) error) error {
	const line = `jsonpath={range .items[*]}{.spec.csi.driver} {.metadata.name} {.spec.persistentVolumeReclaimPolicy} ` +
		`{.metadata.annotations.pv\.kubernetes\.io/provisioned-by}{"\n"}{end}`
	out, err := l.Kube.Kubectl(ctx, nil, "get", "persistentvolumes", "-o", line)
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[0] != Driver {
			continue
		}
		policy := fields[2]
		if len(fields) < 4 {
			policy = "static"
		}
		if err := f(fields[1], policy); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) isEmpty(ctx context.Context) (bool, string, error) {
	volumes, err := l.Kube.Kubectl(ctx, nil, "get", "persistentvolumes,volumeattachments,"+snapshotContents, "-o", "name")
	if err != nil {
		return false, "", err
	}
	images, err := l.Images(ctx)
	if err != nil {
		return false, "", err
	}
	images = slices.DeleteFunc(images, func(name string) bool { return !strings.HasPrefix(name, "pvc-") })
	trash, err := l.Trash(ctx)
	left := slices.Concat(strings.Fields(volumes), images, trash)
	return len(left) == 0, "there are " + strings.Join(left, ", "), err
}

// Uninstall removes the chart, and returns when its objects are gone.
func (l *Lab) Uninstall(ctx context.Context) error {
	_, err := l.Helm(ctx, "uninstall", Release, "--namespace", Namespace, "--wait", "--timeout", installLimit.String(), "--ignore-not-found")
	return err
}

// ignore returns err, unless it is of that kind.
func ignore(err error, kind fault.Kind) error {
	if errors.Is(err, kind) {
		return nil
	}
	return err
}
