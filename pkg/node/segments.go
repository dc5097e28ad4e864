package node

import (
	"fmt"
	"regexp"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// Kubernetes makes a label of the node of each segment, and the CSI spec (message Topology) has
// the same rules. It wants a domain before the name.
var (
	segmentKey   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
	segmentValue = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
)

// CheckSegments returns fault.Invalid for keys and values that cannot be labels of a node:
// the kubelet would not register the driver, and only its log would say why.
func CheckSegments(segments map[string]string) error {
	for key, value := range segments {
		if !segmentKey.MatchString(key) || !segmentValue.MatchString(value) {
			return fmt.Errorf("%q=%q is not DOMAIN/NAME=VALUE as for a label of a node: %w", key, value, fault.Invalid)
		}
	}
	return nil
}
