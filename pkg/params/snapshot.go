package params

import (
	"fmt"
	"strings"
)

// CheckSnapshotClass returns an Invalid error that names the first key of the parameters of a
// VolumeSnapshotClass or VolumeGroupSnapshotClass that is not known. There is no key of
// ours yet: a snapshot stands where its volume is. Those that the snapshotter adds with
// --extra-create-metadata (csi.storage.k8s.io/volumesnapshot/name and others), and those that it
// should have kept to itself (csi.storage.k8s.io/snapshotter-secret-name), are left alone.
func CheckSnapshotClass(m map[string]string) error {
	return table[struct{}]{}.read(&struct{}{}, m, func(key string) error {
		if strings.HasPrefix(key, metadataPrefix) {
			return nil
		}
		return fmt.Errorf("snapshot class: %w", invalid("unknown key %q: there is none", key))
	})
}
